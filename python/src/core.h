/* What the files of the extension module share. */
#ifndef PAGEDKV_PYTHON_CORE_H
#define PAGEDKV_PYTHON_CORE_H

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API            /* CMake says it too, in its own spelling */
#define Py_LIMITED_API 0x030A0000 /* Python 3.10: one module for every later one */
#endif
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

#include <pagedkv/pagedkv.h>
#include <pagedkv/pagedkv_cuda.h>

enum { MAX_DIMS = 5 };

/*
 * Another library's array, borrowed for one call.  Items are opaque: dtype says
 * only whether two arrays hold the same kind.
 */
typedef struct array {
    char       *data;
    int         n_dims;
    int64_t     shape[MAX_DIMS];
    int64_t     stride_bytes[MAX_DIMS];
    int64_t     item_bytes;
    int32_t     dtype;
    bool        read_only;
    const char *name; /* the argument, for messages */
    PyObject   *owner;  /* what must live as long, or NULL */
    void       *dlpack; /* what must be given back, or NULL */
    bool        dlpack_versioned;
} array;

/* Fills *out from NumPy, PyTorch or anything with DLPack.  False: exception set. */
bool array_open(array *out, PyObject *obj, const char *name, bool writable);

/* The same of a PyTorch tensor on that CUDA device; its items must not be looked at. */
bool array_open_cuda(array *out, PyObject *obj, const char *name, int32_t device);
void array_close(array *a);

/* A JAX array, which is never written. */
bool array_is_jax(PyObject *obj);

/* Once, when the module is made. */
bool array_setup(void);

/* A contiguous vector of int32 (or int64 too).  False: exception set. */
bool array_is_vector(const array *a, bool allow_int64);
bool array_is_int32(const array *a);
bool array_is_int64(const array *a);

/* "float32", "bfloat16", ...: static, or valid until the next call. */
const char *dtype_name(int32_t dtype);

/* Sets pagedkv's exception for a status of the library; returns NULL. */
PyObject *raise_error(const pkv_error *err, const pkv_slices *slices);

/* The same with a printf-style text of the bindings' own; PKV_E_INVALID for the second. */
PyObject *raise_status(pkv_status code, const char *format, ...);
PyObject *raise_invalid(const char *format, ...);
PyObject *raise_unsupported(const char *format, ...);

/* Threads of the bindings' own, as a pkv_parallel_for. */
void    pool_parallel_for(void *user, int32_t n_parts, pkv_parallel_body body, void *ctx);
int32_t pool_get_threads(void);
void    pool_set_threads(int32_t n);

/* The options of a call that moves as many bytes, about. */
pkv_update_opts core_opts(uint32_t flags, int64_t bytes);

/* The device's handle, opened the first time.  Needs no GIL. */
pkv_status cuda_handle(int32_t device, pkv_cuda **out, pkv_error *err);

/* The same with an exception for what went wrong.  NULL: exception set. */
pkv_cuda *cuda_open_device(int32_t device);

/* Where a call on CUDA tensors runs, from Python's numbers.  False: exception set. */
typedef struct cuda_place {
    int32_t         device;
    pkv_cuda_stream stream;
} cuda_place;

bool cuda_read_place(PyObject *device, PyObject *stream, cuda_place *out);

/* One int32 that the device reads or writes.  False: exception set. */
bool cuda_open_word(array *a, PyObject *obj, const char *name, int32_t device);

/* Methods, file by file. */
PyObject *core_move(PyObject *self, PyObject *const *args, Py_ssize_t n_args);
PyObject *core_check_slices(PyObject *self, PyObject *const *args, Py_ssize_t n_args);
PyObject *core_plan(PyObject *self, PyObject *args);
PyObject *core_plan_bound(PyObject *self, PyObject *args);
PyObject *core_plan_slots(PyObject *self, PyObject *args);
PyObject *core_plan_blocks(PyObject *self, PyObject *const *args, Py_ssize_t n_args);
PyObject *core_plan_step(PyObject *self, PyObject *args);
PyObject *core_xla_handler(PyObject *self, PyObject *args);
PyObject *core_xla_handler_cuda(PyObject *self, PyObject *args);
PyObject *core_cuda_device_count(PyObject *self, PyObject *args);
PyObject *core_cuda_open(PyObject *self, PyObject *args);
PyObject *core_cuda_update(PyObject *self, PyObject *const *args, Py_ssize_t n_args);
PyObject *core_cuda_plan(PyObject *self, PyObject *args);
PyObject *core_cuda_plan_slots(PyObject *self, PyObject *args);
PyObject *core_pool_open(PyObject *self, PyObject *args);
PyObject *core_pool_alloc(PyObject *self, PyObject *args);
PyObject *core_pool_share(PyObject *self, PyObject *args);
PyObject *core_pool_free(PyObject *self, PyObject *args);
PyObject *core_pool_unkeep(PyObject *self, PyObject *args);
PyObject *core_pool_owners(PyObject *self, PyObject *args);
PyObject *core_pool_find(PyObject *self, PyObject *args);
PyObject *core_pool_publish(PyObject *self, PyObject *args);
PyObject *core_pool_twin(PyObject *self, PyObject *args);
PyObject *core_pool_counts(PyObject *self, PyObject *args);
PyObject *core_pool_check(PyObject *self, PyObject *args);

/* Two views of upstream's slices, int32 [3, N], and the count. */
bool slices_open(pkv_slices *out, const array *a, int32_t *n);

#endif
