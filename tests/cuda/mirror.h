/* Copies of host memory on a device: for the suites that run there once more (mirror.c). */
#ifndef PAGEDKV_TESTS_CUDA_MIRROR_H
#define PAGEDKV_TESTS_CUDA_MIRROR_H

#include "main.h"

enum { MIRROR_REGIONS = 256, MIRROR_MARGIN = 4096 };

/* Host memory [from, to), and its copy with poison on both sides. */
typedef struct mirror_region {
    unsigned char *from, *to;
    unsigned char *there; /* where from lies on the device, with the same low bits */
    void          *block; /* what was allocated */
} mirror_region;

typedef struct mirror {
    int           n;
    mirror_region region[MIRROR_REGIONS];
} mirror;

/* The device, opened at the first use and kept. */
pkv_cuda *mirror_device(void);

void mirror_init(mirror *m);

/* Memory that is to be copied; what meets is one region.  No byte of it: nothing. */
void mirror_add(mirror *m, const void *data, int64_t n_bytes);

/*
 * False for what is left to the host: more than is copied back and forth, and other threads
 * than the first, whose results would be copied over each other's.  test_moving.c has both.
 */
bool mirror_is_possible(const mirror *m);

/* Makes the copies. */
void mirror_fill(mirror *m);
void mirror_free(mirror *m);

/* Where the copy of a byte lies; NULL for NULL. */
void *mirror_there(const mirror *m, const void *data);

/* Copies the regions of `written` back; all else on the device must be as the host has it. */
void mirror_take(const mirror *m, const mirror *written);

/* Memory of the device with these bytes. */
void *mirror_new(const void *data, size_t n_bytes);
void  mirror_read(void *data, const void *there, size_t n_bytes);
void  mirror_drop(void *there);

/*
 * Puts a call on a stream, as it is or captured in a graph in turns, and waits.  Options are
 * those of the host's call as far as a device has them.  The status word must stay 0, or is
 * returned.
 */
typedef pkv_status (*mirror_call)(void *ctx, const pkv_update_opts *opts, pkv_error *err,
                                  pkv_cuda_stream stream);
void    mirror_run(mirror_call put, void *ctx, const pkv_update_opts *opts);
int32_t mirror_run_word(mirror_call put, void *ctx, const pkv_update_opts *opts);

/* How many there were. */
uint64_t mirror_n_calls(void);

#endif
