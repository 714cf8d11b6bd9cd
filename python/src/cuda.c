/* CUDA devices, each opened once, and updates of PyTorch's tensors on them. */
#include <pthread.h>

#include "dtype.h"
#include "move.h"

enum { MAX_DEVICES = 64 };

/* Kept for the life of the process: captured graphs hold their kernels. */
static struct {
    pthread_mutex_t lock; /* taken to open one; handles are never replaced */
    pkv_cuda       *handle[MAX_DEVICES];
} devices = {.lock = PTHREAD_MUTEX_INITIALIZER};

static pkv_cuda *opened(int32_t device)
{
    return device < 0 || device >= MAX_DEVICES
               ? NULL
               : __atomic_load_n(&devices.handle[device], __ATOMIC_ACQUIRE);
}

pkv_status cuda_handle(int32_t device, pkv_cuda **out, pkv_error *err)
{
    *err = (pkv_error){.code = PKV_E_INVALID, .index = -1, .layer = -1, .value = device,
                       .what = "there is no such CUDA device"};
    if (device < 0 || device >= MAX_DEVICES) {
        return PKV_E_INVALID;
    }
    *out = opened(device);
    if (*out != NULL) {
        return PKV_OK;
    }
    pkv_status status = PKV_OK;
    pthread_mutex_lock(&devices.lock);
    *out = devices.handle[device];
    if (*out == NULL) {
        status = pkv_cuda_open(out, device, err);
        __atomic_store_n(&devices.handle[device], *out, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&devices.lock);
    return status;
}

/* Opening takes up to a second, so the interpreter's lock is let go. */
pkv_cuda *cuda_open_device(int32_t device)
{
    pkv_cuda *cuda = opened(device);
    pkv_error err;
    if (cuda != NULL) {
        return cuda;
    }
    PyThreadState *held = PyEval_SaveThread();
    pkv_status     status = cuda_handle(device, &cuda, &err);
    PyEval_RestoreThread(held);
    if (status != PKV_OK) {
        char line[192];
        pkv_error_format(&err, line, sizeof line);
        raise_status(status, "cuda:%d: %s", (int)device, line);
        return NULL;
    }
    return cuda;
}

/* cuda_open(device) */
PyObject *core_cuda_open(PyObject *self, PyObject *args)
{
    int device;
    (void)self;
    if (!PyArg_ParseTuple(args, "i", &device) || cuda_open_device(device) == NULL) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* cuda_device_count() -> 0 where there is no driver, or no device code */
PyObject *core_cuda_device_count(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    int32_t    n = 0;
    pkv_error  err;
    pkv_status status = pkv_cuda_device_count(&n, &err);
    if (status != PKV_OK && status != PKV_E_UNSUPPORTED) {
        return raise_error(&err, NULL);
    }
    return PyLong_FromLong(n);
}

/* ---- the update ------------------------------------------------------------------ */

enum { ARG_K, ARG_V, ARG_SLICES, ARG_K_CACHE, ARG_V_CACHE, ARG_N, ARG_PAGE_SIZE, ARG_STATUS,
       ARG_DEVICE, ARG_STREAM, N_ARGS };

bool cuda_read_place(PyObject *device, PyObject *stream, cuda_place *out)
{
    const int64_t ordinal = PyLong_AsLongLong(device);
    out->stream = PyLong_AsVoidPtr(stream);
    if (PyErr_Occurred()) {
        return false;
    }
    if (ordinal < 0 || ordinal >= MAX_DEVICES) {
        raise_invalid("device: cuda:%lld does not exist", (long long)ordinal);
        return false;
    }
    out->device = (int32_t)ordinal;
    return true;
}

bool cuda_open_word(array *a, PyObject *obj, const char *name, int32_t device)
{
    if (!array_open_cuda(a, obj, name, device)) {
        return false;
    }
    if (!array_is_int32(a) || a->n_dims > 1 || (a->n_dims == 1 && a->shape[0] != 1)) {
        raise_invalid("%s: is not one int32, the only kind that the device looks at", name);
        return false;
    }
    return true;
}

static bool open_all(call *c, PyObject *const *args, int32_t device)
{
    if (!array_open_cuda(&c->k, args[ARG_K], c->apart ? "key" : "new_kv", device) ||
        (c->apart && !array_open_cuda(&c->v, args[ARG_V], "value", device)) ||
        !array_open_cuda(&c->slices, args[ARG_SLICES], "slices", device) ||
        !array_open_cuda(&c->k_cache, args[ARG_K_CACHE], c->apart ? "key_cache" : "kv_cache",
                         device) ||
        (c->apart && !array_open_cuda(&c->v_cache, args[ARG_V_CACHE], "value_cache", device)) ||
        !cuda_open_word(&c->count, args[ARG_N], "num_kv_update_slices", device) ||
        (args[ARG_STATUS] != Py_None &&
         !cuda_open_word(&c->status_word, args[ARG_STATUS], "status_word", device))) {
        return false;
    }
    return slices_open(&c->plan, &c->slices, (int32_t *)(void *)c->count.data);
}

/* cuda_update(k, v, slices, k_cache, v_cache, n, page_size, status_word, device, stream) */
PyObject *core_cuda_update(PyObject *self, PyObject *const *args, Py_ssize_t n_args)
{
    (void)self;
    if (n_args != N_ARGS) {
        PyErr_SetString(PyExc_TypeError, "cuda_update() takes 10 arguments");
        return NULL;
    }
    cuda_place place;
    call       c = {.apart = args[ARG_V] != Py_None,
                    .cache_dtype = DTYPE_NONE,
                    .page_size = PyLong_AsLongLong(args[ARG_PAGE_SIZE])};
    if (PyErr_Occurred() || !cuda_read_place(args[ARG_DEVICE], args[ARG_STREAM], &place)) {
        return NULL;
    }
    if (c.page_size < 1) {
        return raise_invalid("page_size: is %lld, not 1 or more", (long long)c.page_size);
    }
    c.stream = place.stream;
    bool ok = open_all(&c, args, place.device) &&
              (c.cuda = cuda_open_device(place.device)) != NULL && move_run(&c);
    move_close(&c);
    if (!ok) {
        return NULL;
    }
    Py_RETURN_NONE;
}
