/* An opened device: the driver's functions, the loaded kernels, and launches. */
#ifndef PAGEDKV_SRC_CUDA_DEVICE_H
#define PAGEDKV_SRC_CUDA_DEVICE_H

#include <pagedkv/pagedkv_cuda.h>

#include "../internal.h"
#include "driver.h"
#include "job.h"

/* The device code, a fat binary; zero bytes where it was not built (absent.c). */
extern const unsigned char pkv_i_cuda_image[];
extern const size_t        pkv_i_cuda_image_bytes;

struct pkv_cuda {
    pkv_i_driver       driver;
    pkv_i_cu_context   context; /* the primary one, retained */
    pkv_i_cu_module    module;
    pkv_i_cu_function  kernel[PKV_I_CUDA_KERNELS];
    bool               waits; /* the kernels can wait for the one ahead: code for 9.0 on */
    pkv_cuda_info      info;
};

/* One call's work on a device: its context is current between the two. */
typedef struct pkv_i_cuda_call {
    pkv_cuda       *cuda;
    pkv_cuda_stream stream;
    uint32_t        flags;  /* PKV_UPDATE_* */
    bool            pushed; /* the context was not current before */
} pkv_i_cuda_call;

/* Makes the context current; with PKV_UPDATE_CHECKED looks whose the stream is. */
pkv_status pkv_i_cuda_begin(pkv_i_cuda_call *call, pkv_cuda *cuda, uint32_t flags,
                            pkv_cuda_stream stream, pkv_error *err);
void       pkv_i_cuda_end(pkv_i_cuda_call *call);

/* With PKV_UPDATE_CHECKED: can the device use this pointer?  NULL: there is none to look at. */
pkv_status pkv_i_cuda_check_pointer(const pkv_i_cuda_call *call, const void *pointer,
                                    const char *what, pkv_error *err);

/* Puts kernel number `kernel` on the stream, with info.grid_blocks blocks or with one. */
pkv_status pkv_i_cuda_launch(const pkv_i_cuda_call *call, int kernel, const void *job,
                             bool one_block, pkv_error *err);

#endif
