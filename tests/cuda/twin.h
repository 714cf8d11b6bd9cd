/*
 * A device to test on, and memory twice: on the device, and on the host as a model makes it.
 * For the tests that only a device has; nothing here touches device memory from the host.
 */
#ifndef PAGEDKV_TESTS_CUDA_TWIN_H
#define PAGEDKV_TESTS_CUDA_TWIN_H

#include "../convert_world.h"
#include "../world.h"
#include "main.h"

/* Everything that a call needs beside its views.  opts has the status word in it. */
typedef struct device {
    gpu            *g;
    pkv_cuda       *cuda;
    void           *stream;
    int32_t        *status_word;
    pkv_update_opts opts;
} device;

void device_open(device *d);
void device_close(device *d);

/* Waits for the stream; fails unless the status word is this, and sets it to 0. */
void device_expect_status(const device *d, int32_t expected);

/* Sets the status word. */
void device_set_status(const device *d, int32_t status);

/* Kernels put on streams so far; 0 with a real driver, where nobody counts. */
int64_t device_launches(void);

/* Fails unless so many were put since, where somebody counts. */
void device_expect_launches(int64_t before, int64_t n);

/* Host memory and its copy. */
typedef struct twin {
    const unsigned char *host;
    unsigned char       *there;
    size_t               n_bytes;
} twin;

twin twin_new(const device *d, const void *host, size_t n_bytes);
void twin_free(const device *d, twin *t);
void twin_push(const device *d, const twin *t); /* the host's bytes once more */

/* Where the copy of a byte of the host lies; NULL for NULL. */
void *twin_at(const twin *t, const void *host);

/* The same view of the copy.  Scales are in the same memory as the planes. */
pkv_cache  twin_cache(const twin *t, const pkv_cache *cache);
pkv_new_kv twin_new_kv(const twin *t, const pkv_new_kv *new_kv);
pkv_rows   twin_rows(const twin *t, const pkv_rows *rows);

/* Fails unless the device has just these bytes. */
void twin_expect(const device *d, const twin *t, const void *expected, const char *what);

/* Slices on the device: all columns of a list on the host, those behind its n too. */
void device_slices_init(const device *d, pkv_slices *there, int64_t capacity);
void device_slices_free(const device *d, pkv_slices *there);
void device_slices_set(const device *d, const pkv_slices *there, const slice_list *list,
                       int32_t n);

/* Columns from list->n on, filled with one of the patterns that must not matter. */
enum { GARBAGE_KINDS = 5 };
void slice_list_garbage(slice_list *list, int kind, uint64_t seed);

void slice_list_shuffle(slice_list *list, rng *r);

#endif
