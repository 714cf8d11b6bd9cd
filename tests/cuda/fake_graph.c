/* The fake driver's captures and graphs; see fake.h. */
#include "fake.h"

#include <pthread.h>
#include <stdlib.h>

enum { MODE_GLOBAL, MODE_THREAD_LOCAL, MODE_RELAXED };

/* A captured graph, and one that is ready to run. */
typedef struct fake_graph {
    fake_ops ops;
} fake_graph;

static fake_capture *captures;

fake_capture *fake_find_capture(uint64_t id)
{
    fake_capture *c = captures;
    while (c != NULL && c->id != id) {
        c = c->next;
    }
    return c;
}

int fake_unsafe_call(void)
{
    unsigned long thread = (unsigned long)pthread_self();
    int           code = 0;
    for (fake_capture *c = captures; c != NULL; c = c->next) {
        if (c->mode == MODE_GLOBAL || (c->mode == MODE_THREAD_LOCAL && c->thread == thread)) {
            c->is_invalid = true;
            code = FAKE_E_CAPTURE_UNSUPPORTED;
        }
    }
    return code;
}

DRIVER(cuStreamBeginCapture_v2, void *handle, int mode)
{
    FAKE_LOCK;
    static uint64_t n_captures;
    fake_stream    *s;
    int             code = fake_find_stream(handle, &s);
    if (code != 0 || fake_is_legacy(handle)) {
        return code != 0 ? code : FAKE_E_CAPTURE_UNSUPPORTED;
    }
    if (s->capture != NULL) {
        return FAKE_E_ILLEGAL_STATE;
    }
    fake_capture *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return FAKE_E_OUT_OF_MEMORY;
    }
    fake_drain(s);
    *c = (fake_capture){.id = ++n_captures, .mode = mode, .origin = s, .next = captures,
                        .thread = (unsigned long)pthread_self()};
    captures = c;
    s->capture = c;
    return 0;
}

/* Takes a capture off the list and its streams out of it. */
static void end_capture(fake_capture *c)
{
    fake_capture **at = &captures;
    while (*at != c) {
        at = &(*at)->next;
    }
    *at = c->next;
    c->origin->capture = NULL;
    for (fake_stream *s = fake_streams(); s != NULL; s = s->next) {
        s->capture = s->capture == c ? NULL : s->capture;
    }
}

DRIVER(cuStreamEndCapture, void *handle, fake_graph **out)
{
    FAKE_LOCK;
    fake_stream *s;
    int          code = fake_find_stream(handle, &s);
    *out = NULL;
    if (code != 0 || s->capture == NULL || s->capture->origin != s) {
        return code != 0 ? code : FAKE_E_CAPTURE_UNMATCHED;
    }
    fake_capture *c = s->capture;
    if (c->mode != MODE_RELAXED && c->thread != (unsigned long)pthread_self()) {
        return FAKE_E_CAPTURE_WRONG_THREAD;
    }
    fake_graph *graph = calloc(1, sizeof *graph);
    if (graph == NULL) {
        return FAKE_E_OUT_OF_MEMORY;
    }
    end_capture(c);
    if (c->is_invalid) {
        fake_clear(&c->ops);
        free(graph);
        free(c);
        return FAKE_E_CAPTURE_INVALIDATED;
    }
    graph->ops = c->ops;
    free(c);
    fake.counts.n_graphs++;
    *out = graph;
    return 0;
}

DRIVER(cuGraphInstantiateWithFlags, fake_graph **out, const fake_graph *from,
       unsigned long long flags)
{
    FAKE_LOCK;
    fake_graph *ready = flags == 0 ? calloc(1, sizeof *ready) : NULL;
    if (ready == NULL) {
        return FAKE_E_INVALID_VALUE;
    }
    fake_append_copies(&ready->ops, &from->ops);
    fake.counts.n_graphs++;
    *out = ready;
    return 0;
}

DRIVER(cuGraphLaunch, const fake_graph *ready, void *handle)
{
    FAKE_LOCK;
    fake_stream *s;
    int          code = fake_find_stream(handle, &s);
    for (size_t i = 0; i < ready->ops.n && code == 0; i++) {
        const fake_function *f = ready->ops.op[i].function;
        code = f != NULL && !f->module->alive ? FAKE_E_INVALID_HANDLE : 0;
    }
    fake_ops copies = {0};
    fake_append_copies(&copies, &ready->ops);
    for (size_t i = 0; i < copies.n; i++) {
        if (code == 0) {
            code = fake_put(s, &copies.op[i]);
        } else {
            free(copies.op[i].kept);
        }
    }
    free(copies.op);
    return code;
}

static int destroy(fake_graph *graph)
{
    fake_clear(&graph->ops);
    free(graph);
    fake.counts.n_graphs--;
    return 0;
}

DRIVER(cuGraphDestroy, fake_graph *graph)
{
    FAKE_LOCK;
    return destroy(graph);
}

DRIVER(cuGraphExecDestroy, fake_graph *ready)
{
    FAKE_LOCK;
    return destroy(ready);
}
