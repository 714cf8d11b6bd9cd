/* The CUDA kernels compiled as plain C: what the fake driver launches. */
#ifndef PAGEDKV_TESTS_CUDA_EMULATED_H
#define PAGEDKV_TESTS_CUDA_EMULATED_H

#include <stddef.h>
#include <stdint.h>

typedef struct emulated_kernel {
    const char *name;      /* of the symbol in the device code, as "pkv_copy_16" */
    size_t      job_bytes; /* of its one parameter */
    void (*run_block)(const void *job, uint32_t block, uint32_t n_blocks);
} emulated_kernel;

/* NULL: there is no such kernel. */
const emulated_kernel *emulated_find(const char *name);

#endif
