/*
 * The replay with its cache in the memory of a GPU.  New K/V, plans and checks stay as
 * they are, in host memory; it is then a copy: new K/V go to the device before an update,
 * and what the checks look at comes from it right before.
 *
 * Each of these does nothing where the engine has no device.  A copy that fails has its
 * line and is noted in e->failed; nothing more is copied then.
 */
#ifndef PAGEDKV_CLI_ENGINE_CUDA_H
#define PAGEDKV_CLI_ENGINE_CUDA_H

#include "engine.h"

/* Opens the device and allocates there.  The engine's views are of device memory from here on. */
int  engine_cuda_open(engine *e);
void engine_cuda_close(engine *e);

/* Device memory as the host's is: poison, and nothing as new K/V; the copy limit.  Exit status. */
int engine_cuda_touch(engine *e);

/* The new K/V of the step, to the device. */
void engine_cuda_put_rows(engine *e);

/* Puts the plan of one way and its count, launches the graph of the step's bucket.  Exit status. */
int engine_cuda_write(engine *e, int way, int64_t *ns);

/* From the device: some slots in all layers, all of the cache. */
void engine_cuda_fetch(engine *e, int64_t slot, int64_t n_slots);
void engine_cuda_fetch_all(engine *e);

/* Poison in the device's page. */
void engine_cuda_poison(engine *e, int32_t page);

/* What the kernels say of the whole run in their status word: into the result.  Exit status. */
int engine_cuda_finish(engine *e);

#endif
