/*
 * The Qwen-Bailian traces: one JSON object a line, as Mooncake's but for units.
 *
 *     {"chat_id": 12, "parent_chat_id": 7, "timestamp": 3.25, "input_length": 40,
 *      "output_length": 9, "type": "text", "turn": 2, "hash_ids": [4, 5, 19]}
 *
 * The time is in seconds; a hash id stands for 16 tokens, the last one for what
 * is left.  Who continues which chat shows in the hash ids; other keys are not
 * read.
 */
#include "trace_json.h"

static const trace_json_shape shape = {
    TRACE_JSON_LENGTHS("input_length", "output_length"),
    .time = "timestamp",
    .get_time = trace_json_seconds,
    .bad_time = "timestamp is missing or not a number of seconds from 0 to 9000000000",
    .bad_hash_count = "hash_ids has not one id for every 16 tokens of input_length",
    .block_tokens = 16,
};

/* What Mooncake's lines do not have. */
static bool bailian_recognise(const char *line, size_t length)
{
    return trace_json_opens(line, length) && trace_json_has_key(line, length, "chat_id");
}

static const char *bailian_parse_line(trace *t, const char *line, size_t length,
                                      int64_t line_index)
{
    (void)line_index;
    return trace_json_parse_line(t, line, length, &shape);
}

const trace_format trace_format_bailian = {
    .name = "bailian",
    .recognise = bailian_recognise,
    .parse_line = bailian_parse_line,
};
