/* The fake driver's streams, events and the work on them; see fake.h. */
#define _POSIX_C_SOURCE 200809L
#include "fake.h"

#include <fenv.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { STREAM_LEGACY = 1, STREAM_PER_THREAD = 2, MAX_PARAMETER_BYTES = 4096 };

typedef struct fake_event {
    bool     is_recorded;
    double   ms;
    uint64_t capture; /* in which it was recorded, or 0 */
} fake_event;

/* The default streams of each device, then those that were created. */
static fake_stream  legacy[FAKE_DEVICES], per_thread[FAKE_DEVICES];
static fake_stream *streams;

/* ---- lists of work --------------------------------------------------------- */

void fake_append(fake_ops *to, const fake_op *op)
{
    if (to->n == to->room) {
        to->room = to->room * 2 + 16;
        fake_op *larger = realloc(to->op, to->room * sizeof *larger);
        if (larger == NULL) {
            abort();
        }
        to->op = larger;
    }
    to->op[to->n++] = *op;
}

static void *keep(const void *bytes, size_t n_bytes)
{
    void *kept = malloc(n_bytes);
    if (kept == NULL) {
        abort();
    }
    memcpy(kept, bytes, n_bytes);
    return kept;
}

void fake_append_copies(fake_ops *to, const fake_ops *from)
{
    for (size_t i = 0; i < from->n; i++) {
        fake_op op = from->op[i];
        if (op.kept != NULL) {
            op.kept = keep(op.kept, op.kept_bytes);
        }
        fake_append(to, &op);
    }
}

void fake_clear(fake_ops *ops)
{
    for (size_t i = 0; i < ops->n; i++) {
        free(ops->op[i].kept);
    }
    free(ops->op);
    *ops = (fake_ops){0};
}

/* ---- running it ------------------------------------------------------------ */

static uint64_t mix(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static void run_kernel(const fake_op *op)
{
    static uint64_t n_runs;
    uint64_t        state = (uint64_t)fake_setting("SEED", 1) * 1000003 + n_runs++;
    uint32_t       *order = calloc(op->n_blocks, sizeof *order);
    if (order == NULL) {
        abort();
    }
    for (uint32_t i = 0; i < op->n_blocks; i++) {
        uint32_t other = (uint32_t)(mix(&state) % (i + 1));
        order[i] = order[other];
        order[other] = i;
    }
    fenv_t callers; /* a device has a float environment of its own */
    fegetenv(&callers);
    fesetenv(FE_DFL_ENV);
    for (uint32_t i = 0; i < op->n_blocks; i++) {
        op->function->kernel->run_block(op->kept, order[i], op->n_blocks);
    }
    fesetenv(&callers);
    free(order);
}

static void run(const fake_op *op)
{
    switch (op->kind) {
    case FAKE_LAUNCH: run_kernel(op); break;
    case FAKE_COPY: memmove(op->dst, op->src != NULL ? op->src : op->kept, op->n_bytes); break;
    case FAKE_FILL: memset(op->dst, op->byte, op->n_bytes); break;
    }
}

void fake_drain(fake_stream *s)
{
    if (s->queue.n == 0) {
        return;
    }
    fake_expose(true);
    for (size_t i = 0; i < s->queue.n; i++) {
        run(&s->queue.op[i]);
    }
    fake_expose(false);
    fake_clear(&s->queue);
}

void fake_drain_all(void)
{
    for (int i = 0; i < FAKE_DEVICES; i++) {
        fake_drain(&legacy[i]);
        fake_drain(&per_thread[i]);
    }
    for (fake_stream *s = streams; s != NULL; s = s->next) {
        fake_drain(s);
    }
}

/* ---- streams --------------------------------------------------------------- */

fake_stream *fake_streams(void)
{
    return streams;
}

bool fake_is_legacy(const void *handle)
{
    return handle == NULL || (uintptr_t)handle == STREAM_LEGACY;
}

int fake_find_stream(void *handle, fake_stream **out)
{
    fake_context *context = fake_current();
    if (context == NULL) {
        return FAKE_E_INVALID_CONTEXT;
    }
    if (fake_is_legacy(handle) || (uintptr_t)handle == STREAM_PER_THREAD) {
        fake_stream *s = fake_is_legacy(handle) ? legacy : per_thread;
        *out = &s[context->device];
        (*out)->context = context;
        return 0;
    }
    for (fake_stream *s = streams; s != NULL; s = s->next) {
        if (s == handle) {
            *out = s;
            return 0;
        }
    }
    return FAKE_E_INVALID_HANDLE;
}

/* The legacy stream and those that are not "non-blocking" wait for each other. */
static int wait_for_others(fake_stream *s)
{
    if (s->is_blocking) {
        fake_drain(&legacy[s->context->device]);
    }
    if (s != &legacy[s->context->device]) {
        return 0;
    }
    for (fake_stream *other = streams; other != NULL; other = other->next) {
        if (other->is_blocking && other->context == s->context) {
            if (other->capture != NULL) {
                other->capture->is_invalid = true;
                return FAKE_E_CAPTURE_IMPLICIT;
            }
            fake_drain(other);
        }
    }
    return 0;
}

int fake_put(fake_stream *s, const fake_op *op)
{
    int code = 0;
    if (s->capture == NULL) {
        code = wait_for_others(s);
    } else if (s->capture->is_invalid) {
        code = FAKE_E_CAPTURE_INVALIDATED;
    }
    if (code != 0) {
        free(op->kept);
        return code;
    }
    fake_append(s->capture != NULL ? &s->capture->ops : &s->queue, op);
    return 0;
}

DRIVER(cuStreamCreate, fake_stream **out, unsigned int flags)
{
    FAKE_LOCK;
    fake_stream *s = calloc(1, sizeof *s);
    if (s == NULL || fake_current() == NULL || flags > 1) {
        free(s);
        return s == NULL ? FAKE_E_OUT_OF_MEMORY : FAKE_E_INVALID_CONTEXT;
    }
    *s = (fake_stream){.context = fake_current(), .is_blocking = flags == 0, .next = streams};
    streams = s;
    fake.counts.n_streams++;
    *out = s;
    return 0;
}

DRIVER(cuStreamDestroy_v2, fake_stream *handle)
{
    FAKE_LOCK;
    for (fake_stream **at = &streams; *at != NULL; at = &(*at)->next) {
        fake_stream *s = *at;
        if (s == handle && s->capture == NULL) {
            fake_drain(s);
            *at = s->next;
            free(s);
            fake.counts.n_streams--;
            return 0;
        }
    }
    return FAKE_E_INVALID_HANDLE;
}

DRIVER(cuStreamGetCtx, void *handle, fake_context **out)
{
    FAKE_LOCK;
    fake_stream *s;
    int          code = fake_find_stream(handle, &s);
    if (code == 0) {
        *out = s->context;
    }
    return code;
}

DRIVER(cuStreamSynchronize, void *handle)
{
    FAKE_LOCK;
    fake_stream *s;
    int          code = fake_find_stream(handle, &s);
    code = code != 0 ? code : fake_unsafe_call();
    code = code != 0 ? code : wait_for_others(s);
    if (code == 0) {
        fake_drain(s);
    }
    return code;
}

/* ---- events ---------------------------------------------------------------- */

DRIVER(cuEventCreate, fake_event **out, unsigned int flags)
{
    FAKE_LOCK;
    *out = flags == 0 && fake_current() != NULL ? calloc(1, sizeof **out) : NULL;
    fake.counts.n_events += *out != NULL;
    return *out != NULL ? 0 : FAKE_E_INVALID_VALUE;
}

DRIVER(cuEventDestroy_v2, fake_event *event)
{
    FAKE_LOCK;
    free(event);
    fake.counts.n_events--;
    return 0;
}

DRIVER(cuEventRecord, fake_event *event, void *handle)
{
    FAKE_LOCK;
    fake_stream *s;
    int          code = fake_find_stream(handle, &s);
    if (code != 0) {
        return code;
    }
    event->is_recorded = true;
    event->capture = s->capture != NULL ? s->capture->id : 0;
    if (s->capture == NULL) {
        fake_drain(s);
    }
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    event->ms = (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
    return 0;
}

DRIVER(cuEventSynchronize, const fake_event *event)
{
    FAKE_LOCK;
    return event->capture != 0 ? FAKE_E_CAPTURED_EVENT : 0;
}

DRIVER(cuEventElapsedTime, float *ms, const fake_event *start, const fake_event *end)
{
    FAKE_LOCK;
    if (!start->is_recorded || !end->is_recorded) {
        return FAKE_E_INVALID_HANDLE;
    }
    *ms = (float)(end->ms - start->ms);
    return start->capture != 0 || end->capture != 0 ? FAKE_E_CAPTURED_EVENT : 0;
}

/* What an event waits for has been done when it was recorded; in a capture, the stream joins. */
DRIVER(cuStreamWaitEvent, void *handle, const fake_event *event, unsigned int flags)
{
    FAKE_LOCK;
    fake_stream *s;
    int          code = fake_find_stream(handle, &s);
    if (code != 0 || flags != 0) {
        return code != 0 ? code : FAKE_E_INVALID_VALUE;
    }
    if (event->capture == 0) {
        return s->capture == NULL ? 0 : FAKE_E_CAPTURE_ISOLATION;
    }
    fake_capture *capture = fake_find_capture(event->capture);
    if (capture == NULL || (s->capture != NULL && s->capture != capture) || s->queue.n > 0) {
        return FAKE_E_CAPTURE_ISOLATION;
    }
    s->capture = capture;
    return 0;
}

/* ---- work ------------------------------------------------------------------ */

static int check_launch(const pkv_i_cu_launch_config *c, fake_function *f, const fake_stream *s)
{
    int64_t fault = fake_setting("LAUNCH", 0);
    if (fault != 0) {
        unsetenv("PAGEDKV_FAKE_CUDA_LAUNCH");
        return (int)fault;
    }
    if (!f->module->alive || f->module->context != fake_current() ||
        s->context != f->module->context) {
        return FAKE_E_INVALID_HANDLE;
    }
    if (c->grid_x == 0 || c->grid_y != 1 || c->grid_z != 1 || c->block_x == 0 ||
        c->block_x > 1024 || c->block_y != 1 || c->block_z != 1 || c->shared_bytes != 0) {
        return FAKE_E_INVALID_VALUE;
    }
    for (unsigned int i = 0; i < c->n_attributes; i++) {
        if (c->attributes[i].id != PKV_I_CU_PROGRAMMATIC_STREAM_SERIALIZATION ||
            fake_setting("CAPABILITY", 90) < 90) {
            return FAKE_E_INVALID_VALUE;
        }
    }
    if (!f->loaded && fake_unsafe_call() != 0) {
        return FAKE_E_CAPTURE_UNSUPPORTED; /* it would be loaded now */
    }
    return f->kernel->job_bytes > MAX_PARAMETER_BYTES ? FAKE_E_LAUNCH_OUT_OF_RESOURCES : 0;
}

DRIVER(cuLaunchKernelEx, const pkv_i_cu_launch_config *config, fake_function *function,
       void **parameters, void **extra)
{
    FAKE_LOCK;
    fake_stream *s;
    int          code = fake_find_stream(config->stream, &s);
    code = code != 0 ? code : check_launch(config, function, s);
    if (code != 0 || extra != NULL) {
        return code != 0 ? code : FAKE_E_INVALID_VALUE;
    }
    function->loaded = true;
    size_t  n_bytes = function->kernel->job_bytes;
    fake_op op = {.kind = FAKE_LAUNCH, .function = function, .n_blocks = config->grid_x,
                  .kept = keep(parameters[0], n_bytes), .kept_bytes = n_bytes};
    code = fake_put(s, &op);
    fake.counts.last_grid = config->grid_x;
    fake.counts.last_threads = config->block_x;
    fake.counts.n_launches += code == 0;
    fake.counts.n_dependent += code == 0 && config->n_attributes > 0;
    return code;
}

DRIVER(cuMemcpyHtoDAsync_v2, pkv_i_cu_address dst, const void *src, size_t n_bytes, void *handle)
{
    FAKE_LOCK;
    fake_stream      *s;
    int               code = fake_find_stream(handle, &s);
    const fake_block *from = fake_find(src, n_bytes);
    void             *to = (void *)(uintptr_t)dst;
    if (code != 0 || fake_find(to, n_bytes) == NULL || (from != NULL && !from->is_host)) {
        return code != 0 ? code : FAKE_E_INVALID_VALUE;
    }
    fake_op op = {.kind = FAKE_COPY, .dst = to, .src = src, .n_bytes = n_bytes};
    if (from == NULL && s->capture == NULL) {
        op.kept = keep(src, n_bytes);
        op.kept_bytes = n_bytes;
        op.src = NULL;
    }
    return fake_put(s, &op);
}

DRIVER(cuMemcpyDtoHAsync_v2, void *dst, pkv_i_cu_address src, size_t n_bytes, void *handle)
{
    FAKE_LOCK;
    fake_stream      *s;
    int               code = fake_find_stream(handle, &s);
    const fake_block *to = fake_find(dst, n_bytes);
    const void       *from = (const void *)(uintptr_t)src;
    if (code != 0 || fake_find(from, n_bytes) == NULL || (to != NULL && !to->is_host)) {
        return code != 0 ? code : FAKE_E_INVALID_VALUE;
    }
    code = fake_put(s, &(fake_op){.kind = FAKE_COPY, .dst = dst, .src = from, .n_bytes = n_bytes});
    if (code == 0 && to == NULL && s->capture == NULL) {
        fake_drain(s);
    }
    return code;
}

DRIVER(cuMemcpyDtoDAsync_v2, pkv_i_cu_address dst, pkv_i_cu_address src, size_t n_bytes,
       void *handle)
{
    FAKE_LOCK;
    fake_stream *s;
    int          code = fake_find_stream(handle, &s);
    void        *to = (void *)(uintptr_t)dst, *from = (void *)(uintptr_t)src;
    if (code != 0 || fake_find(to, n_bytes) == NULL || fake_find(from, n_bytes) == NULL) {
        return code != 0 ? code : FAKE_E_INVALID_VALUE;
    }
    return fake_put(s, &(fake_op){.kind = FAKE_COPY, .dst = to, .src = from, .n_bytes = n_bytes});
}

DRIVER(cuMemsetD8Async, pkv_i_cu_address dst, unsigned char byte, size_t n_bytes, void *handle)
{
    FAKE_LOCK;
    fake_stream *s;
    int          code = fake_find_stream(handle, &s);
    void        *to = (void *)(uintptr_t)dst;
    if (code != 0 || fake_find(to, n_bytes) == NULL) {
        return code != 0 ? code : FAKE_E_INVALID_VALUE;
    }
    return fake_put(s, &(fake_op){.kind = FAKE_FILL, .dst = to, .byte = byte, .n_bytes = n_bytes});
}
