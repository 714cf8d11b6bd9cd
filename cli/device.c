/* A CUDA device for the commands: opening it, its clock, its copy limit. */
#include "device.h"

#include <stdlib.h>

enum { CUDA_OUT_OF_MEMORY = 2 }; /* the driver's code */

int device_status(const cli_device *d, int code, const char *what)
{
    if (code == 0) {
        return CLI_OK;
    }
    const bool no_memory = code == CUDA_OUT_OF_MEMORY || code == GPU_E_NO_MEMORY;
    return cli_fail(no_memory ? CLI_EXHAUSTED : CLI_NO_DEVICE, "--backend cuda: %s: %s", what,
                    gpu_error_text(d->gpu, code));
}

/* No driver, no device, none that the code is for: it is not there, whatever the call says. */
static int fail_open(const pkv_error *err)
{
    char line[512];

    pkv_error_format(err, line, sizeof line);
    return cli_fail(err->code == PKV_E_NO_MEMORY ? CLI_EXHAUSTED : CLI_NO_DEVICE,
                    "--backend cuda: %s", line);
}

int device_open(cli_device *d)
{
    pkv_error err;

    *d = (cli_device){.info = {.struct_size = sizeof d->info}};
    if (pkv_cuda_open(&d->cuda, 0, &err) != PKV_OK) {
        return fail_open(&err);
    }
    (void)pkv_cuda_get_info(d->cuda, &d->info);
    int code = gpu_open(&d->gpu, 0);
    code = code != 0 ? code : gpu_stream_create(d->gpu, &d->stream);
    code = code != 0 ? code : gpu_event_create(d->gpu, &d->events[0]);
    code = code != 0 ? code : gpu_event_create(d->gpu, &d->events[1]);
    return device_status(d, code, "the device");
}

void device_close(cli_device *d)
{
    if (d->gpu != NULL) {
        gpu_event_destroy(d->gpu, d->events[0]);
        gpu_event_destroy(d->gpu, d->events[1]);
        gpu_stream_destroy(d->gpu, d->stream);
    }
    pkv_cuda_close(d->cuda);
    gpu_close(d->gpu);
    *d = (cli_device){0};
}

int device_timer_start(cli_device *d)
{
    return gpu_event_record(d->gpu, d->events[0], d->stream);
}

int device_timer_stop(cli_device *d, double *ns)
{
    float ms = 0;
    int   code = gpu_event_record(d->gpu, d->events[1], d->stream);

    code = code != 0 ? code : gpu_event_synchronize(d->gpu, d->events[1]);
    code = code != 0 ? code : gpu_elapsed_ms(d->gpu, d->events[0], d->events[1], &ms);
    *ns = (double)ms * 1e6;
    return code;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

int device_copy_limit(cli_device *d, void *dst, const void *src, int64_t n_bytes, double *out)
{
    enum { ROUNDS = 9, COPIES = 8 };
    double ns[ROUNDS];
    int    code = 0;

    *out = 0;
    if (n_bytes < 1 << 20) {
        return CLI_OK;
    }
    for (int round = 0; round < ROUNDS && code == 0; round++) {
        code = device_timer_start(d);
        for (int i = 0; i < COPIES && code == 0; i++) {
            code = gpu_copy(d->gpu, dst, src, (size_t)n_bytes, d->stream);
        }
        code = code != 0 ? code : device_timer_stop(d, &ns[round]);
    }
    if (code != 0) {
        return device_status(d, code, "the copy limit");
    }
    qsort(ns, ROUNDS, sizeof ns[0], compare_doubles);
    const double median = ns[ROUNDS / 2];
    *out = median > 0 ? 2e9 * COPIES * (double)n_bytes / median : 0;
    return CLI_OK;
}
