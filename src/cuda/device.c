/* A device: opened, asked what it is, given work. */
#include "device.h"

#include <stdlib.h>
#include <string.h>

enum { MIN_COMPUTE_MAJOR = 8 }; /* what the device code is built for */

/* ---- the context ----------------------------------------------------------- */

static pkv_status push_context(pkv_i_cuda_call *call, pkv_error *err)
{
    const pkv_i_driver *driver = &call->cuda->driver;
    pkv_i_cu_context    current = NULL;
    pkv_i_cu_result     result = driver->get_current(&current);
    if (result == 0 && current != call->cuda->context) {
        result = driver->push(call->cuda->context);
        call->pushed = result == 0;
    }
    return result == 0 ? PKV_OK
                       : pkv_i_fail_driver(err, PKV_E_DEVICE, result,
                                           "the device's context cannot be made current");
}

/* NULL, 1 and 2 stand for default streams, which are of whichever context is current. */
static bool is_special(pkv_cuda_stream stream)
{
    return (uintptr_t)stream <= 2;
}

static pkv_status check_stream(const pkv_i_cuda_call *call, pkv_error *err)
{
    pkv_i_cu_context owner = NULL;
    pkv_i_cu_result  result = call->cuda->driver.get_stream_context(call->stream, &owner);
    if (result != 0 || owner != call->cuda->context) {
        return pkv_i_fail_driver(err, PKV_E_INVALID, result,
                                 "the stream is not of the device's context");
    }
    return PKV_OK;
}

pkv_status pkv_i_cuda_begin(pkv_i_cuda_call *call, pkv_cuda *cuda, uint32_t flags,
                            pkv_cuda_stream stream, pkv_error *err)
{
    *call = (pkv_i_cuda_call){.cuda = cuda, .stream = stream, .flags = flags};
    if (cuda == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "the device's handle is NULL");
    }
    PKV_I_TRY(push_context(call, err));
    if ((flags & PKV_UPDATE_CHECKED) == 0 || is_special(stream)) {
        return PKV_OK;
    }
    pkv_status status = check_stream(call, err);
    if (status != PKV_OK) {
        pkv_i_cuda_end(call);
    }
    return status;
}

void pkv_i_cuda_end(pkv_i_cuda_call *call)
{
    if (call->pushed) {
        pkv_i_cu_context ours;
        call->cuda->driver.pop(&ours);
        call->pushed = false;
    }
}

/* ---- pointers and launches ------------------------------------------------- */

/* Is it memory of this device, or managed, which every device can use? */
static bool is_of_device(const pkv_cuda *cuda, pkv_i_cu_address address)
{
    int             ordinal = -1;
    unsigned int    managed = 0; /* the driver writes a boolean, of up to so many bytes */
    pkv_i_cu_result result =
        cuda->driver.get_pointer_attribute(&ordinal, PKV_I_CU_DEVICE_ORDINAL, address);
    if (result == 0 && ordinal == cuda->info.device) {
        return true;
    }
    result = cuda->driver.get_pointer_attribute(&managed, PKV_I_CU_IS_MANAGED, address);
    return result == 0 && managed != 0;
}

pkv_status pkv_i_cuda_check_pointer(const pkv_i_cuda_call *call, const void *pointer,
                                    const char *what, pkv_error *err)
{
    if ((call->flags & PKV_UPDATE_CHECKED) == 0 || pointer == NULL) {
        return PKV_OK;
    }
    pkv_i_cu_address address = (uintptr_t)pointer;
    unsigned int     type = 0;
    pkv_i_cu_result  result =
        call->cuda->driver.get_pointer_attribute(&type, PKV_I_CU_MEMORY_TYPE, address);
    if (result == 0 && (type == PKV_I_CU_MEMORYTYPE_HOST || is_of_device(call->cuda, address))) {
        return PKV_OK;
    }
    return pkv_i_fail_driver(err, PKV_E_INVALID, result, what);
}

pkv_status pkv_i_cuda_launch(const pkv_i_cuda_call *call, int kernel, const void *job,
                             bool one_block, pkv_error *err)
{
    pkv_cuda                 *cuda = call->cuda;
    pkv_i_cu_launch_attribute early = {.id = PKV_I_CU_PROGRAMMATIC_STREAM_SERIALIZATION,
                                       .value.allowed = 1};
    const bool is_early = (call->flags & PKV_UPDATE_DEPENDENT_LAUNCH) != 0 && cuda->waits;
    pkv_i_cu_launch_config config = {
        .grid_x = one_block ? 1u : (unsigned int)cuda->info.grid_blocks,
        .grid_y = 1,
        .grid_z = 1,
        .block_x = (unsigned int)cuda->info.block_threads,
        .block_y = 1,
        .block_z = 1,
        .stream = call->stream,
        .attributes = is_early ? &early : NULL,
        .n_attributes = is_early ? 1 : 0,
    };
    void           *parameters[] = {(void *)(uintptr_t)job}; /* the driver only reads it */
    pkv_i_cu_result result = cuda->driver.launch(&config, cuda->kernel[kernel], parameters, NULL);
    return result == 0 ? PKV_OK
                       : pkv_i_fail_driver(err, PKV_E_DEVICE, result, "a kernel was not launched");
}

/* ---- open and close -------------------------------------------------------- */

static pkv_status check_code(pkv_error *err)
{
    return pkv_i_cuda_image_bytes > 0
               ? PKV_OK
               : pkv_i_fail(err, PKV_E_UNSUPPORTED, "this library has no device code");
}

static pkv_status read_info(pkv_cuda *cuda, pkv_i_cu_device device, pkv_error *err)
{
    const pkv_i_driver *driver = &cuda->driver;
    pkv_cuda_info      *info = &cuda->info;
    size_t              memory_bytes = 0;
    int                 major = 0, minor = 0, n_multiprocessors = 0, l2_bytes = 0, version = 0;
    pkv_i_cu_result     result = driver->get_version(&version);
    const struct {
        int *value, attribute;
    } asked[] = {{&major, PKV_I_CU_COMPUTE_CAPABILITY_MAJOR},
                 {&minor, PKV_I_CU_COMPUTE_CAPABILITY_MINOR},
                 {&n_multiprocessors, PKV_I_CU_MULTIPROCESSOR_COUNT},
                 {&l2_bytes, PKV_I_CU_L2_CACHE_SIZE}};
    for (size_t i = 0; i < sizeof asked / sizeof asked[0] && result == 0; i++) {
        result = driver->get_attribute(asked[i].value, asked[i].attribute, device);
    }
    result = result != 0 ? result : driver->get_memory(&memory_bytes, device);
    result = result != 0 ? result : driver->get_name(info->name, sizeof info->name, device);
    if (result != 0) {
        return pkv_i_fail_driver(err, PKV_E_DEVICE, result, "the device does not say what it is");
    }
    info->struct_size = sizeof *info;
    info->driver_version = version;
    info->compute_major = major;
    info->compute_minor = minor;
    info->n_multiprocessors = n_multiprocessors;
    info->grid_blocks = n_multiprocessors * PKV_I_CUDA_BLOCKS_PER_SM;
    info->block_threads = PKV_I_CUDA_THREADS;
    info->memory_bytes = (int64_t)memory_bytes;
    info->l2_bytes = l2_bytes;
    info->name[sizeof info->name - 1] = '\0';
    return PKV_OK;
}

static pkv_status find_device(pkv_cuda *cuda, int32_t ordinal, pkv_i_cu_device *device,
                              pkv_error *err)
{
    int             n = 0;
    pkv_i_cu_result result = cuda->driver.count_devices(&n);
    if (result != 0) {
        return pkv_i_fail_driver(err, PKV_E_DEVICE, result, "the devices cannot be counted");
    }
    if (ordinal < 0 || ordinal >= n) {
        return pkv_i_fail(err, PKV_E_INVALID, "there is no such device");
    }
    result = cuda->driver.get_device(device, ordinal);
    if (result != 0) {
        return pkv_i_fail_driver(err, PKV_E_DEVICE, result, "the device cannot be had");
    }
    cuda->info.device = ordinal;
    PKV_I_TRY(read_info(cuda, *device, err));
    if (cuda->info.compute_major < MIN_COMPUTE_MAJOR) {
        pkv_i_fail(err, PKV_E_UNSUPPORTED, "the library's code is for compute capability 8.0 on");
        if (err != NULL) {
            err->value = cuda->info.compute_major * 10 + cuda->info.compute_minor;
        }
        return PKV_E_UNSUPPORTED;
    }
    return PKV_OK;
}

/* What a failure to load code means. */
static pkv_status fail_load(const pkv_cuda *cuda, pkv_i_cu_result result, pkv_error *err)
{
    switch (result) {
    case PKV_I_CU_OUT_OF_MEMORY:
        return pkv_i_fail_driver(err, PKV_E_NO_MEMORY, result, "no memory for the device code");
    case PKV_I_CU_INVALID_IMAGE:
    case PKV_I_CU_NO_BINARY_FOR_GPU:
    case PKV_I_CU_INVALID_PTX:
    case PKV_I_CU_JIT_COMPILER_NOT_FOUND:
    case PKV_I_CU_UNSUPPORTED_PTX_VERSION:
    case PKV_I_CU_JIT_COMPILATION_DISABLED:
    case PKV_I_CU_INVALID_SOURCE:
    case PKV_I_CU_NOT_FOUND:
        pkv_i_fail_driver(err, PKV_E_UNSUPPORTED, result,
                          "the device code is not for this device or driver");
        if (err != NULL) {
            err->value = cuda->info.compute_major * 10 + cuda->info.compute_minor;
        }
        return PKV_E_UNSUPPORTED;
    default:
        return pkv_i_fail_driver(err, PKV_E_DEVICE, result, "the device code was not loaded");
    }
}

/*
 * A function is loaded here and now: a driver that does it at the first launch might do it
 * inside a capture.  Any question about a function makes an older driver load it.
 */
static pkv_i_cu_result load_kernel(pkv_cuda *cuda, int kernel, const char *name)
{
    const pkv_i_driver *driver = &cuda->driver;
    pkv_i_cu_result result = driver->get_function(&cuda->kernel[kernel], cuda->module, name);
    if (result != 0) {
        return result;
    }
    int ptx_version = 0;
    if (driver->load_function != NULL) {
        result = driver->load_function(cuda->kernel[kernel]);
    }
    if (result == 0) {
        result = driver->get_function_attribute(&ptx_version, PKV_I_CU_PTX_VERSION,
                                                cuda->kernel[kernel]);
    }
    cuda->waits = cuda->waits && ptx_version >= 90;
    return result;
}

static pkv_status load_code(pkv_cuda *cuda, pkv_error *err)
{
#define NAME(name, job) "pkv_" #name,
#define CAST_NAME(from, to, from_dtype, to_dtype) "pkv_cast_" #from "_" #to,
    static const char *const names[PKV_I_CUDA_KERNELS] = {
        PKV_I_CUDA_COPIES(NAME) PKV_I_CUDA_PLANS(NAME) PKV_I_CASTS(CAST_NAME)};
#undef NAME
#undef CAST_NAME
    const pkv_i_driver *driver = &cuda->driver;
    pkv_i_cu_result     result = driver->load(&cuda->module, pkv_i_cuda_image);
    if (result != 0) {
        return fail_load(cuda, result, err);
    }
    cuda->waits = true; /* until a kernel is found that does not */
    for (int i = 0; i < PKV_I_CUDA_KERNELS && result == 0; i++) {
        result = load_kernel(cuda, i, names[i]);
    }
    if (result != 0) {
        driver->unload(cuda->module);
        return fail_load(cuda, result, err);
    }
    return PKV_OK;
}

static pkv_status load_in_context(pkv_cuda *cuda, pkv_error *err)
{
    pkv_i_cuda_call call;
    PKV_I_TRY(pkv_i_cuda_begin(&call, cuda, 0, NULL, err));
    pkv_status status = load_code(cuda, err);
    pkv_i_cuda_end(&call);
    return status;
}

static void release_context(const pkv_cuda *cuda)
{
    pkv_i_cu_device device;
    if (cuda->driver.get_device(&device, cuda->info.device) == 0) {
        cuda->driver.release(device);
    }
}

static pkv_status open_device(pkv_cuda *cuda, int32_t ordinal, pkv_error *err)
{
    pkv_i_cu_device device;
    PKV_I_TRY(find_device(cuda, ordinal, &device, err));
    pkv_i_cu_result result = cuda->driver.retain(&cuda->context, device);
    if (result != 0) {
        return pkv_i_fail_driver(
            err, result == PKV_I_CU_OUT_OF_MEMORY ? PKV_E_NO_MEMORY : PKV_E_DEVICE, result,
            "the device has no context");
    }
    pkv_status status = load_in_context(cuda, err);
    if (status != PKV_OK) {
        release_context(cuda);
    }
    return status;
}

pkv_status pkv_cuda_open(pkv_cuda **out, int32_t device, pkv_error *err)
{
    if (out == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "there is no place for the handle");
    }
    *out = NULL;
    PKV_I_TRY(check_code(err));
    pkv_cuda *cuda = calloc(1, sizeof *cuda);
    if (cuda == NULL) {
        return pkv_i_fail(err, PKV_E_NO_MEMORY, "no memory for a device's handle");
    }
    pkv_status status = pkv_i_driver_open(&cuda->driver, err);
    if (status == PKV_OK) {
        status = open_device(cuda, device, err);
        if (status == PKV_OK) {
            *out = cuda;
            return PKV_OK;
        }
        pkv_i_driver_close(&cuda->driver);
    }
    free(cuda);
    return status;
}

void pkv_cuda_close(pkv_cuda *cuda)
{
    if (cuda == NULL) {
        return;
    }
    pkv_i_cuda_call call;
    if (pkv_i_cuda_begin(&call, cuda, 0, NULL, NULL) == PKV_OK) {
        cuda->driver.unload(cuda->module);
        pkv_i_cuda_end(&call);
    }
    release_context(cuda);
    pkv_i_driver_close(&cuda->driver);
    free(cuda);
}

pkv_status pkv_cuda_device_count(int32_t *n_out, pkv_error *err)
{
    if (n_out == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "there is no place for the count");
    }
    *n_out = 0;
    PKV_I_TRY(check_code(err));
    pkv_i_driver driver;
    pkv_error    why;
    pkv_status   status = pkv_i_driver_open(&driver, &why);
    if (status == PKV_E_DEVICE && why.detail == PKV_I_CU_NO_DEVICE) {
        return PKV_OK; /* it starts only if there is a device: so it has counted them */
    }
    if (status != PKV_OK) {
        if (err != NULL) {
            *err = why;
        }
        return status;
    }
    int             n = 0;
    pkv_i_cu_result result = driver.count_devices(&n);
    pkv_i_driver_close(&driver);
    if (result != 0) {
        return pkv_i_fail_driver(err, PKV_E_DEVICE, result, "the devices cannot be counted");
    }
    *n_out = n;
    return PKV_OK;
}

pkv_status pkv_cuda_get_info(const pkv_cuda *cuda, pkv_cuda_info *out)
{
    if (cuda == NULL || out == NULL) {
        return PKV_E_INVALID;
    }
    size_t struct_size = out->struct_size;
    PKV_I_TRY(pkv_i_check_out(out, struct_size, sizeof *out));
    *out = cuda->info;
    out->struct_size = struct_size;
    pkv_i_clear_tail(out, struct_size, sizeof *out);
    return PKV_OK;
}
