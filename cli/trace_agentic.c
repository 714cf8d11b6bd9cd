/*
 * The traces of kv-cache-tester: a JSON document for the session of an agent.
 *
 *     {"id": "trace_0001", "block_size": 64, "requests": [
 *       {"t": 0.0, "type": "n", "in": 130, "out": 20, "hash_ids": [1, 2], "think_time": 0.0},
 *       {"t": 4.5, "type": "subagent", "requests": [
 *         {"t": 0.0, "type": "n", "in": 70, "out": 5, "hash_ids": [3]}]},
 *       {"t": 9.0, "type": "s", "in": 200, "out": 8, "hash_ids": [1, 2, 4]}]}
 *
 * The time is in seconds, in a sub-agent since its start.  A hash id stands for
 * block_size tokens, 64 where the key is missing.  In the published files only
 * whole blocks have one; one more for the rest is as good.  All agents of a file
 * share their hash ids.  Other keys are not read.
 */
#include "trace_json.h"

#include <stdlib.h>
#include <string.h>

enum { DEFAULT_BLOCK_TOKENS = 64 };

static const trace_json_shape shape_of_request = {
    TRACE_JSON_LENGTHS("in", "out"),
    .time = "t",
    .get_time = trace_json_seconds,
    .bad_time = "t is missing or not a number of seconds from 0 to 9000000000",
    .bad_hash_count = "hash_ids has not one id for every block of in",
    .tail_optional = true,
};

/* A request where it stands in the document. */
typedef struct entry {
    const json_t *object;
    int64_t       arrival_ns;
    int64_t       number;
} entry;

typedef struct session {
    entry  *entries;
    int64_t n_entries;
    int64_t capacity;
    int64_t number; /* of the request or sub-agent that is being read, from 1 */
} session;

static const char *collect_request(session *s, const json_t *object, int64_t arrival_ns)
{
    void *items = s->entries;
    if (!trace_reserve(&items, s->n_entries, &s->capacity, sizeof *s->entries)) {
        return TRACE_OUT_OF_MEMORY;
    }
    s->entries = items;
    s->entries[s->n_entries++] = (entry){object, arrival_ns, s->number};
    return NULL;
}

/* The requests of a list and of its sub-agents.  Jansson bounds the depth of a document. */
static const char *collect(session *s, const json_t *list, int64_t start_ns)
{
    if (!json_is_array(list)) {
        return "requests is missing or not a list";
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *object = json_array_get(list, i);
        int64_t ns;
        s->number++;
        if (!json_is_object(object)) {
            return "not a JSON object";
        }
        const char *problem = trace_json_time(object, &shape_of_request, &ns);
        if (problem == NULL && ns > TRACE_MAX_SECONDS * 1000000000 - start_ns) {
            problem = "t of a sub-agent adds up to more than 9000000000 seconds";
        }
        if (problem != NULL) {
            return problem;
        }
        const char *type = json_string_value(json_object_get(object, "type"));
        problem = type != NULL && strcmp(type, "subagent") == 0
                      ? collect(s, json_object_get(object, "requests"), start_ns + ns)
                      : collect_request(s, object, start_ns + ns);
        if (problem != NULL) {
            return problem;
        }
    }
    return NULL;
}

static int by_time(const void *a, const void *b)
{
    const entry *x = a;
    const entry *y = b;
    if (x->arrival_ns != y->arrival_ns) {
        return x->arrival_ns < y->arrival_ns ? -1 : 1;
    }
    return x->number < y->number ? -1 : 1;
}

static const char *add_in_order(trace *t, session *s, const trace_json_shape *shape,
                                int64_t max_requests)
{
    const char *problem = NULL;
    if (s->n_entries > 0) {
        qsort(s->entries, (size_t)s->n_entries, sizeof *s->entries, by_time);
    }
    for (int64_t i = 0; i < s->n_entries && problem == NULL; i++) {
        if (max_requests > 0 && i == max_requests) {
            break;
        }
        s->number = s->entries[i].number;
        problem = trace_json_add(t, s->entries[i].object, shape, s->entries[i].arrival_ns);
    }
    return problem;
}

static const char *add_session(trace *t, const json_t *root, int64_t max_requests,
                               int64_t *number)
{
    trace_json_shape shape = shape_of_request;
    const json_t *block = json_object_get(root, "block_size");
    shape.block_tokens = DEFAULT_BLOCK_TOKENS;
    if (block != NULL &&
        (!trace_json_int(block, INT32_MAX, &shape.block_tokens) || shape.block_tokens == 0)) {
        return "block_size is not a whole number from 1 to 2147483647";
    }
    session s = {0};
    const char *problem = collect(&s, json_object_get(root, "requests"), 0);
    if (problem == NULL) {
        problem = add_in_order(t, &s, &shape, max_requests);
    }
    *number = s.number;
    free(s.entries);
    return problem;
}

static const char *agentic_parse_document(trace *t, const char *text, size_t length,
                                          int64_t max_requests, trace_place *where)
{
    json_t *root;
    const char *problem = trace_json_load(text, length, &root, &where->line);
    if (problem == NULL) {
        problem = add_session(t, root, max_requests, &where->request);
    }
    json_decref(root);
    return problem;
}

/* A line that is cut off in the middle of a Mooncake request is no document. */
static bool agentic_recognise(const char *line, size_t length)
{
    return trace_json_opens(line, length) &&
           (trace_json_has_key(line, length, "requests") ||
            (!trace_json_is_whole(line, length) &&
             !trace_json_has_key(line, length, "timestamp")));
}

const trace_format trace_format_agentic = {
    .name = "agentic",
    .recognise = agentic_recognise,
    .parse_document = agentic_parse_document,
};
