/*
 * The Mooncake traces: one JSON object a line, with the prompt's blocks by hash.
 *
 *     {"timestamp": 27482, "input_length": 6955, "output_length": 52,
 *      "hash_ids": [46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 2111, 2112]}
 *
 * The time is in milliseconds; a hash id stands for 512 tokens, the last one
 * for what is left.  Other keys are not read.
 */
#include "trace.h"

#include <errno.h>
#include <jansson.h>

enum { BLOCK_TOKENS = 512 };

/* Any object: a first line that is broken gets an error that says how. */
static bool mooncake_recognise(const char *line, size_t length)
{
    size_t i = 0;
    while (i < length && (line[i] == ' ' || line[i] == '\t')) {
        i++;
    }
    return i < length && line[i] == '{';
}

/* A whole number in [0, max]. */
static bool get_int(const json_t *value, int64_t max, int64_t *out)
{
    *out = json_integer_value(value);
    return json_is_integer(value) && *out >= 0 && *out <= max;
}

static const char *json_problem(const json_error_t *error)
{
    /* Jansson reports most failed allocations as invalid tokens. */
    if (errno == ENOMEM) {
        return TRACE_OUT_OF_MEMORY;
    }
    switch (json_error_code(error)) {
    case json_error_duplicate_key:
        return "a key stands twice in the JSON object";
    case json_error_numeric_overflow:
        return "a number does not fit 64 bits";
    default:
        return "not valid JSON";
    }
}

static const char *add_hashes(trace *t, const json_t *ids, const trace_request *request)
{
    static const char problem[] = "hash_ids is missing or not a list of whole numbers from 0";
    if (!json_is_array(ids)) {
        return problem;
    }
    size_t n_blocks = (size_t)((request->prompt_tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS);
    if (json_array_size(ids) != n_blocks) {
        return "hash_ids has not one id for every 512 tokens of input_length";
    }
    for (size_t i = 0; i < n_blocks; i++) {
        int64_t id;
        if (!get_int(json_array_get(ids, i), INT64_MAX, &id)) {
            return problem;
        }
        if (!trace_add_hash(t, id)) {
            return TRACE_OUT_OF_MEMORY;
        }
    }
    return NULL;
}

static const char *add_object(trace *t, const json_t *object)
{
    trace_request request = {.first_hash = t->n_hash_ids};
    int64_t time_ms;
    if (!get_int(json_object_get(object, "timestamp"), INT64_MAX / 1000000, &time_ms)) {
        return "timestamp is missing or not a whole number of milliseconds from 0";
    }
    request.arrival_ns = time_ms * 1000000;
    if (!get_int(json_object_get(object, "input_length"), INT32_MAX, &request.prompt_tokens)) {
        return "input_length is missing or not a whole number from 1 to 2147483647";
    }
    if (!get_int(json_object_get(object, "output_length"), INT32_MAX, &request.output_tokens)) {
        return "output_length is missing or not a whole number from 0 to 2147483647";
    }
    if (request.prompt_tokens == 0) {
        return TRACE_EMPTY_PROMPT;
    }
    const char *problem = add_hashes(t, json_object_get(object, "hash_ids"), &request);
    if (problem != NULL) {
        return problem;
    }
    request.n_hashes = t->n_hash_ids - request.first_hash;
    t->hash_block_tokens = BLOCK_TOKENS;
    return trace_add(t, &request) ? NULL : TRACE_OUT_OF_MEMORY;
}

static const char *mooncake_parse_line(trace *t, const char *line, size_t length,
                                       int64_t line_index)
{
    (void)line_index;
    json_error_t error;
    errno = 0;
    json_t *object = json_loadb(line, length, JSON_REJECT_DUPLICATES, &error);
    if (object == NULL) {
        return json_problem(&error);
    }
    const char *problem = json_is_object(object) ? add_object(t, object) : "not a JSON object";
    json_decref(object);
    return problem;
}

const trace_format trace_format_mooncake = {"mooncake", mooncake_recognise, mooncake_parse_line};
