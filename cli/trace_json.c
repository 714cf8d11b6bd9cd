/* JSON traces: what their first line shows, and the requests in them. */
#include "trace_json.h"

#include <errno.h>
#include <string.h>

/* ---- recognising --------------------------------------------------------- */

static size_t skip_blanks(const char *text, size_t length, size_t i)
{
    while (i < length && (text[i] == ' ' || text[i] == '\t')) {
        i++;
    }
    return i;
}

/* The place behind the string that opens at text[i]. */
static size_t skip_string(const char *text, size_t length, size_t i)
{
    for (i++; i < length && text[i] != '"'; i++) {
        if (text[i] == '\\') {
            i++;
        }
    }
    return i < length ? i + 1 : length;
}

/*
 * Walks through an object by brackets and strings alone: the text may end
 * anywhere, and where it is no JSON, who loads it will say so.  True if the
 * object ends; *has_key is set if it has the key itself.
 */
static bool walk(const char *text, size_t length, const char *key, bool *has_key)
{
    const size_t key_length = strlen(key);
    int64_t depth = 0;
    for (size_t i = 0; i < length;) {
        if (text[i] == '"') {
            const char *string = text + i + 1;
            size_t end = skip_string(text, length, i);
            size_t colon = skip_blanks(text, length, end);
            bool is_key = depth == 1 && colon < length && text[colon] == ':';
            *has_key |= is_key && end - i == key_length + 2 && memcmp(string, key, key_length) == 0;
            i = end;
            continue;
        }
        depth += text[i] == '{' || text[i] == '[';
        depth -= text[i] == '}' || text[i] == ']';
        i++;
        if (depth == 0 && (text[i - 1] == '}' || text[i - 1] == ']')) {
            return true;
        }
    }
    return false;
}

bool trace_json_opens(const char *text, size_t length)
{
    size_t i = skip_blanks(text, length, 0);
    return i < length && text[i] == '{';
}

bool trace_json_is_whole(const char *text, size_t length)
{
    bool has_key = false;
    return walk(text, length, "", &has_key);
}

bool trace_json_has_key(const char *text, size_t length, const char *key)
{
    bool has_key = false;
    walk(text, length, key, &has_key);
    return has_key;
}

/* ---- reading ------------------------------------------------------------- */

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
    case json_error_premature_end_of_input:
        return "not valid JSON: it is cut off";
    default:
        return "not valid JSON";
    }
}

const char *trace_json_load(const char *text, size_t length, json_t **object, int64_t *line)
{
    json_error_t error;
    /* What is cut off is so at its last character, not in the line behind that. */
    while (length > 0 && memchr(" \t\r\n", text[length - 1], 4) != NULL) {
        length--;
    }
    errno = 0;
    *object = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
    *line = *object == NULL && error.line > 0 ? error.line : 1;
    if (*object == NULL) {
        return json_problem(&error);
    }
    if (!json_is_object(*object)) {
        json_decref(*object);
        *object = NULL;
        return "not a JSON object";
    }
    return NULL;
}

bool trace_json_int(const json_t *value, int64_t max, int64_t *out)
{
    *out = json_integer_value(value);
    return json_is_integer(value) && *out >= 0 && *out <= max;
}

bool trace_json_milliseconds(const json_t *value, int64_t *ns)
{
    int64_t ms;
    bool ok = trace_json_int(value, INT64_MAX / 1000000, &ms);
    *ns = ok ? ms * 1000000 : 0;
    return ok;
}

bool trace_json_seconds(const json_t *value, int64_t *ns)
{
    double seconds = json_number_value(value);
    if (!json_is_number(value) || !(seconds >= 0 && seconds <= (double)TRACE_MAX_SECONDS)) {
        return false;
    }
    /* A whole number stays exact; a sum of two times below the maximum fits 64 bits. */
    *ns = json_is_integer(value) ? json_integer_value(value) * 1000000000
                                 : (int64_t)(seconds * 1e9 + 0.5);
    return true;
}

const char *trace_json_time(const json_t *object, const trace_json_shape *shape, int64_t *ns)
{
    return shape->get_time(json_object_get(object, shape->time), ns) ? NULL : shape->bad_time;
}

static const char *add_hashes(trace *t, const json_t *ids, const trace_json_shape *shape,
                              int64_t prompt_tokens)
{
    static const char problem[] = "hash_ids is missing or not a list of whole numbers from 0";
    if (!json_is_array(ids)) {
        return problem;
    }
    const size_t n_ids = json_array_size(ids);
    const size_t n_whole = (size_t)(prompt_tokens / shape->block_tokens);
    const size_t n_blocks = n_whole + (prompt_tokens % shape->block_tokens != 0);
    if (n_ids != n_blocks && !(shape->tail_optional && n_ids == n_whole)) {
        return shape->bad_hash_count;
    }
    for (size_t i = 0; i < n_ids; i++) {
        int64_t id;
        if (!trace_json_int(json_array_get(ids, i), INT64_MAX, &id)) {
            return problem;
        }
        if (!trace_add_hash(t, id)) {
            return TRACE_OUT_OF_MEMORY;
        }
    }
    return NULL;
}

const char *trace_json_add(trace *t, const json_t *object, const trace_json_shape *shape,
                           int64_t arrival_ns)
{
    trace_request request = {.arrival_ns = arrival_ns, .first_hash = t->n_hash_ids};
    if (!trace_json_int(json_object_get(object, shape->prompt), INT32_MAX,
                        &request.prompt_tokens)) {
        return shape->bad_prompt;
    }
    if (!trace_json_int(json_object_get(object, shape->output), INT32_MAX,
                        &request.output_tokens)) {
        return shape->bad_output;
    }
    if (request.prompt_tokens == 0) {
        return TRACE_EMPTY_PROMPT;
    }
    const char *problem =
        add_hashes(t, json_object_get(object, "hash_ids"), shape, request.prompt_tokens);
    if (problem != NULL) {
        return problem;
    }
    request.n_hashes = t->n_hash_ids - request.first_hash;
    t->hash_block_tokens = shape->block_tokens;
    return trace_add(t, &request) ? NULL : TRACE_OUT_OF_MEMORY;
}

const char *trace_json_parse_line(trace *t, const char *line, size_t length,
                                  const trace_json_shape *shape)
{
    json_t *object;
    int64_t ns, line_in_line;
    const char *problem = trace_json_load(line, length, &object, &line_in_line);
    if (problem == NULL) {
        problem = trace_json_time(object, shape, &ns);
    }
    if (problem == NULL) {
        problem = trace_json_add(t, object, shape, ns);
    }
    json_decref(object);
    return problem;
}
