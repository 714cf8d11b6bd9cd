/*
 * The part of the CUDA driver's interface that is used, declared anew: so nothing of CUDA
 * is needed to build, and the driver is found when a device is opened.  tests/cuda/abi.c
 * compares these declarations with the driver's own header.
 */
#ifndef PAGEDKV_SRC_CUDA_DRIVER_H
#define PAGEDKV_SRC_CUDA_DRIVER_H

#include "../internal.h"

typedef int                           pkv_i_cu_device;
typedef unsigned long long            pkv_i_cu_address;
typedef struct pkv_i_cu_context_obj  *pkv_i_cu_context;
typedef struct pkv_i_cu_module_obj   *pkv_i_cu_module;
typedef struct pkv_i_cu_function_obj *pkv_i_cu_function;
typedef void                         *pkv_i_cu_stream;

/* Enums of the driver. */
typedef int pkv_i_cu_result;
typedef int pkv_i_cu_device_attribute;
typedef int pkv_i_cu_pointer_attribute;
typedef int pkv_i_cu_function_attribute;

enum {
    PKV_I_CU_OUT_OF_MEMORY = 2,
    PKV_I_CU_STUB_LIBRARY = 34,
    PKV_I_CU_NO_DEVICE = 100,
    PKV_I_CU_INVALID_IMAGE = 200,
    PKV_I_CU_NO_BINARY_FOR_GPU = 209,
    PKV_I_CU_INVALID_PTX = 218,
    PKV_I_CU_JIT_COMPILER_NOT_FOUND = 221,
    PKV_I_CU_UNSUPPORTED_PTX_VERSION = 222,
    PKV_I_CU_JIT_COMPILATION_DISABLED = 223,
    PKV_I_CU_INVALID_SOURCE = 300,
    PKV_I_CU_NOT_FOUND = 500,
    PKV_I_CU_SYSTEM_DRIVER_MISMATCH = 803,
    PKV_I_CU_COMPAT_NOT_SUPPORTED_ON_DEVICE = 804
};

enum {
    PKV_I_CU_MULTIPROCESSOR_COUNT = 16, /* of a device */
    PKV_I_CU_L2_CACHE_SIZE = 38,
    PKV_I_CU_COMPUTE_CAPABILITY_MAJOR = 75,
    PKV_I_CU_COMPUTE_CAPABILITY_MINOR = 76,
    PKV_I_CU_MEMORY_TYPE = 2, /* of a pointer */
    PKV_I_CU_IS_MANAGED = 8,
    PKV_I_CU_DEVICE_ORDINAL = 9,
    PKV_I_CU_MEMORYTYPE_HOST = 1, /* what MEMORY_TYPE gives */
    PKV_I_CU_MEMORYTYPE_DEVICE = 2,
    PKV_I_CU_PTX_VERSION = 5, /* of a function */
    PKV_I_CU_PROGRAMMATIC_STREAM_SERIALIZATION = 6 /* of a launch */
};

typedef struct pkv_i_cu_launch_attribute {
    int  id;
    char pad[8 - sizeof(int)];
    union {
        int                allowed; /* of PROGRAMMATIC_STREAM_SERIALIZATION */
        char               room[64];
        unsigned long long align;
    } value;
} pkv_i_cu_launch_attribute;

typedef struct pkv_i_cu_launch_config {
    unsigned int               grid_x, grid_y, grid_z;
    unsigned int               block_x, block_y, block_z;
    unsigned int               shared_bytes;
    pkv_i_cu_stream            stream;
    pkv_i_cu_launch_attribute *attributes;
    unsigned int               n_attributes;
} pkv_i_cu_launch_config;

/* X(name here, name in the driver, parameters); all return a pkv_i_cu_result. */
#define PKV_I_DRIVER_FUNCTIONS(X)                                                              \
    X(init, cuInit, (unsigned int flags))                                                      \
    X(get_version, cuDriverGetVersion, (int *version))                                         \
    X(count_devices, cuDeviceGetCount, (int *n))                                               \
    X(get_device, cuDeviceGet, (pkv_i_cu_device *device, int ordinal))                         \
    X(get_name, cuDeviceGetName, (char *name, int room, pkv_i_cu_device device))               \
    X(get_attribute, cuDeviceGetAttribute,                                                     \
      (int *value, pkv_i_cu_device_attribute attribute, pkv_i_cu_device device))               \
    X(get_memory, cuDeviceTotalMem_v2, (size_t *n_bytes, pkv_i_cu_device device))              \
    X(retain, cuDevicePrimaryCtxRetain, (pkv_i_cu_context *out, pkv_i_cu_device device))       \
    X(release, cuDevicePrimaryCtxRelease_v2, (pkv_i_cu_device device))                         \
    X(get_current, cuCtxGetCurrent, (pkv_i_cu_context *out))                                   \
    X(push, cuCtxPushCurrent_v2, (pkv_i_cu_context context))                                   \
    X(pop, cuCtxPopCurrent_v2, (pkv_i_cu_context *out))                                        \
    X(load, cuModuleLoadData, (pkv_i_cu_module *out, const void *image))                       \
    X(unload, cuModuleUnload, (pkv_i_cu_module module))                                        \
    X(get_function, cuModuleGetFunction,                                                       \
      (pkv_i_cu_function *out, pkv_i_cu_module module, const char *name))                      \
    X(get_function_attribute, cuFuncGetAttribute,                                              \
      (int *value, pkv_i_cu_function_attribute attribute, pkv_i_cu_function function))         \
    X(get_stream_context, cuStreamGetCtx, (pkv_i_cu_stream stream, pkv_i_cu_context *out))     \
    X(get_pointer_attribute, cuPointerGetAttribute,                                            \
      (void *value, pkv_i_cu_pointer_attribute attribute, pkv_i_cu_address pointer))           \
    X(launch, cuLaunchKernelEx,                                                                \
      (const pkv_i_cu_launch_config *config, pkv_i_cu_function function, void **parameters,    \
       void **extra))

/* Those that an older driver may lack: NULL then. */
#define PKV_I_DRIVER_OPTIONAL(X) X(load_function, cuFuncLoad, (pkv_i_cu_function function))

typedef struct pkv_i_driver {
    void *library;
#define PKV_I_DRIVER_MEMBER(name, symbol, parameters) pkv_i_cu_result (*name) parameters;
    PKV_I_DRIVER_FUNCTIONS(PKV_I_DRIVER_MEMBER)
    PKV_I_DRIVER_OPTIONAL(PKV_I_DRIVER_MEMBER)
#undef PKV_I_DRIVER_MEMBER
} pkv_i_driver;

/*
 * Finds the driver and starts it.  PKV_E_UNSUPPORTED: there is none, or one that is too old;
 * PKV_E_DEVICE.  err->detail is its code, if it gave one.  Nothing is kept on failure.
 */
pkv_status pkv_i_driver_open(pkv_i_driver *driver, pkv_error *err);
void       pkv_i_driver_close(pkv_i_driver *driver);

/* Fails with the driver's code. */
pkv_status pkv_i_fail_driver(pkv_error *err, pkv_status code, pkv_i_cu_result detail,
                             const char *what);

#endif
