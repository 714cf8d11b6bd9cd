/*
 * What the JSON traces share: loading, numbers, and requests whose prompts are
 * known by a hash id for each block.  See trace.h for what a parser answers.
 */
#ifndef PAGEDKV_CLI_TRACE_JSON_H
#define PAGEDKV_CLI_TRACE_JSON_H

#include <jansson.h>

#include "trace.h"

/* ---- recognising --------------------------------------------------------- */

/* Does an object begin here?  What follows may be broken or cut off. */
bool trace_json_opens(const char *text, size_t length);

/* Of text that opens an object: does the object end in it, and has it this key itself? */
bool trace_json_is_whole(const char *text, size_t length);
bool trace_json_has_key(const char *text, size_t length, const char *key);

/* ---- reading ------------------------------------------------------------- */

/* NULL and *object, or what is wrong and in which line of the text. */
const char *trace_json_load(const char *text, size_t length, json_t **object, int64_t *line);

/* A whole number in [0, max]. */
bool trace_json_int(const json_t *value, int64_t max, int64_t *out);

/* Times: a whole number of milliseconds, any number of seconds up to TRACE_MAX_SECONDS. */
bool trace_json_milliseconds(const json_t *value, int64_t *ns);
bool trace_json_seconds(const json_t *value, int64_t *ns);

/* What a format calls the parts of a request, and what to say where one is wrong. */
typedef struct trace_json_shape {
    const char *time;
    bool (*get_time)(const json_t *value, int64_t *ns);
    const char *bad_time;
    const char *prompt;
    const char *bad_prompt;
    const char *output;
    const char *bad_output;
    const char *bad_hash_count;
    int64_t     block_tokens; /* of a hash id */
    bool        tail_optional; /* the rest behind the last whole block may have no hash id */
} trace_json_shape;

#define TRACE_JSON_LENGTHS(prompt_key, output_key)                                                 \
    .prompt = prompt_key, .output = output_key,                                                    \
    .bad_prompt = prompt_key " is missing or not a whole number from 1 to 2147483647",             \
    .bad_output = output_key " is missing or not a whole number from 0 to 2147483647"

/* The time of a request.  NULL, or what is wrong. */
const char *trace_json_time(const json_t *object, const trace_json_shape *shape, int64_t *ns);

/* Adds a request with its hash ids; the time is the caller's.  NULL, or what is wrong. */
const char *trace_json_add(trace *t, const json_t *object, const trace_json_shape *shape,
                           int64_t arrival_ns);

/* A line that is a request: parse_line of a format. */
const char *trace_json_parse_line(trace *t, const char *line, size_t length,
                                  const trace_json_shape *shape);

#endif
