/*
 * The Mooncake traces: one JSON object a line, with the prompt's blocks by hash.
 *
 *     {"timestamp": 27482, "input_length": 6955, "output_length": 52,
 *      "hash_ids": [46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 2111, 2112]}
 *
 * The time is in milliseconds; a hash id stands for 512 tokens, the last one
 * for what is left.  Other keys are not read.
 */
#include "trace_json.h"

static const trace_json_shape shape = {
    TRACE_JSON_LENGTHS("input_length", "output_length"),
    .time = "timestamp",
    .get_time = trace_json_milliseconds,
    .bad_time = "timestamp is missing or not a whole number of milliseconds from 0",
    .bad_hash_count = "hash_ids has not one id for every 512 tokens of input_length",
    .block_tokens = 512,
};

static const char *mooncake_parse_line(trace *t, const char *line, size_t length,
                                       int64_t line_index)
{
    (void)line_index;
    return trace_json_parse_line(t, line, length, &shape);
}

/* Any object opens it: a first line that is broken gets an error that says how. */
const trace_format trace_format_mooncake = {
    .name = "mooncake",
    .recognise = trace_json_opens,
    .parse_line = mooncake_parse_line,
};
