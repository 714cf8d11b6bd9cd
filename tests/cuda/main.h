/* What the programs that need a GPU share: which driver is here, and a device to work on. */
#ifndef PAGEDKV_TESTS_CUDA_MAIN_H
#define PAGEDKV_TESTS_CUDA_MAIN_H

#include <pagedkv/pagedkv_cuda.h>

#include "../../cli/gpu.h"
#include "../support.h"
#include "fake.h"

/*
 * Exit status 77 if there is no GPU, after a line that says so; else 0.  Where the variable
 * PAGEDKV_CUDA_NEEDED is set that is a failure: the fake driver is always found.
 */
int cuda_absent(void);

/* What the fake driver counts; false with a real one. */
bool fake_here(fake_counts *out);

/* Skips the test with a real driver. */
void needs_fake(void);

/* Sets and unsets a fault of the fake driver. */
void fault_set(const char *name, int64_t value);
void fault_clear(const char *name);

/* Fails with the driver's words unless code is 0. */
#define expect_gpu(g, code) expect_gpu_at((g), (code), __FILE__, __LINE__)
void expect_gpu_at(const gpu *g, int code, const char *file, int line);

#endif
