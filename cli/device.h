/* A CUDA device for the commands: the library's handle and the program's own. */
#ifndef PAGEDKV_CLI_DEVICE_H
#define PAGEDKV_CLI_DEVICE_H

#include <pagedkv/pagedkv_cuda.h>

#include "cli.h"
#include "gpu.h"

typedef struct cli_device {
    pkv_cuda     *cuda;
    gpu          *gpu;
    void         *stream;
    gpu_event     events[2];
    pkv_cuda_info info;
} cli_device;

/*
 * The first device that the driver shows.  Exit status, after one line; closed again
 * by device_close() in any case.
 */
int  device_open(cli_device *d);
void device_close(cli_device *d);

/* One line about a code of gpu.h; its exit status.  CLI_OK for 0, without a line. */
int device_status(const cli_device *d, int code, const char *what);

/* Time between the two, in ns: d->events around what is put on the stream meanwhile. */
int device_timer_start(cli_device *d);
int device_timer_stop(cli_device *d, double *ns);

/*
 * Rate of copies within the device, bytes read plus written per second: the median of
 * several rounds.  Blocks larger than the L2 cache, or it is that cache's rate.  0 if they
 * are smaller than 1 MiB.  Exit status.
 */
int device_copy_limit(cli_device *d, void *dst, const void *src, int64_t n_bytes, double *out);

#endif
