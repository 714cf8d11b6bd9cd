/*
 * The driver's functions as they are declared here and in the driver's own header: the
 * same types, sizes, offsets, numbers.  It is right if it compiles.
 */
#include <cuda.h>

#include "../../cli/gpu_driver.h"
#include "../../src/cuda/driver.h"

#define SAME(ours, theirs) _Static_assert((long long)(ours) == (long long)(theirs), #ours)

SAME(PKV_I_CU_OUT_OF_MEMORY, CUDA_ERROR_OUT_OF_MEMORY);
SAME(PKV_I_CU_STUB_LIBRARY, CUDA_ERROR_STUB_LIBRARY);
SAME(PKV_I_CU_NO_DEVICE, CUDA_ERROR_NO_DEVICE);
SAME(PKV_I_CU_INVALID_IMAGE, CUDA_ERROR_INVALID_IMAGE);
SAME(PKV_I_CU_NO_BINARY_FOR_GPU, CUDA_ERROR_NO_BINARY_FOR_GPU);
SAME(PKV_I_CU_INVALID_PTX, CUDA_ERROR_INVALID_PTX);
SAME(PKV_I_CU_JIT_COMPILER_NOT_FOUND, CUDA_ERROR_JIT_COMPILER_NOT_FOUND);
SAME(PKV_I_CU_UNSUPPORTED_PTX_VERSION, CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
SAME(PKV_I_CU_JIT_COMPILATION_DISABLED, CUDA_ERROR_JIT_COMPILATION_DISABLED);
SAME(PKV_I_CU_INVALID_SOURCE, CUDA_ERROR_INVALID_SOURCE);
SAME(PKV_I_CU_NOT_FOUND, CUDA_ERROR_NOT_FOUND);
SAME(PKV_I_CU_SYSTEM_DRIVER_MISMATCH, CUDA_ERROR_SYSTEM_DRIVER_MISMATCH);
SAME(PKV_I_CU_COMPAT_NOT_SUPPORTED_ON_DEVICE, CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE);
SAME(PKV_I_CU_MULTIPROCESSOR_COUNT, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
SAME(PKV_I_CU_L2_CACHE_SIZE, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
SAME(PKV_I_CU_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME(PKV_I_CU_COMPUTE_CAPABILITY_MINOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
SAME(PKV_I_CU_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
SAME(PKV_I_CU_IS_MANAGED, CU_POINTER_ATTRIBUTE_IS_MANAGED);
SAME(PKV_I_CU_DEVICE_ORDINAL, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
SAME(PKV_I_CU_MEMORYTYPE_HOST, CU_MEMORYTYPE_HOST);
SAME(PKV_I_CU_MEMORYTYPE_DEVICE, CU_MEMORYTYPE_DEVICE);
SAME(PKV_I_CU_PTX_VERSION, CU_FUNC_ATTRIBUTE_PTX_VERSION);
SAME(PKV_I_CU_PROGRAMMATIC_STREAM_SERIALIZATION,
     CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);

SAME(STREAM_NON_BLOCKING, CU_STREAM_NON_BLOCKING);
SAME(CAPTURE_THREAD_LOCAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
SAME(HOST_PORTABLE_MAPPED, CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP);
SAME(ATTRIBUTE_MULTIPROCESSORS, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
SAME(ATTRIBUTE_MEMORY_CLOCK, CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE);
SAME(ATTRIBUTE_MEMORY_BUS, CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH);
SAME(ATTRIBUTE_L2_BYTES, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
SAME(ATTRIBUTE_COMPUTE_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME(ATTRIBUTE_COMPUTE_MINOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);

#define SAME_SIZE(ours, theirs)           \
    SAME(sizeof(ours), sizeof(theirs));   \
    SAME(_Alignof(ours), _Alignof(theirs))
#define SAME_PLACE(ours, theirs)                                                             \
    SAME(offsetof(pkv_i_cu_launch_config, ours), offsetof(CUlaunchConfig, theirs));          \
    SAME(sizeof(((pkv_i_cu_launch_config *)0)->ours), sizeof(((CUlaunchConfig *)0)->theirs))
SAME_SIZE(pkv_i_cu_device, CUdevice);
SAME_SIZE(pkv_i_cu_address, CUdeviceptr);
SAME_SIZE(pkv_i_cu_result, CUresult);
SAME_SIZE(pkv_i_cu_device_attribute, CUdevice_attribute);
SAME_SIZE(pkv_i_cu_pointer_attribute, CUpointer_attribute);
SAME_SIZE(pkv_i_cu_function_attribute, CUfunction_attribute);
SAME_SIZE(driver_code, CUresult);
SAME_SIZE(driver_attribute, CUdevice_attribute);
SAME_SIZE(driver_mode, CUstreamCaptureMode);
SAME_SIZE(driver_device, CUdevice);
SAME_SIZE(device_pointer, CUdeviceptr);
SAME_SIZE(pkv_i_cu_launch_attribute, CUlaunchAttribute);
SAME_SIZE(pkv_i_cu_launch_config, CUlaunchConfig);
SAME(offsetof(pkv_i_cu_launch_attribute, id), offsetof(CUlaunchAttribute, id));
SAME(offsetof(pkv_i_cu_launch_attribute, value.allowed),
     offsetof(CUlaunchAttribute, value.programmaticStreamSerializationAllowed));
SAME_PLACE(grid_x, gridDimX);
SAME_PLACE(grid_y, gridDimY);
SAME_PLACE(grid_z, gridDimZ);
SAME_PLACE(block_x, blockDimX);
SAME_PLACE(block_y, blockDimY);
SAME_PLACE(block_z, blockDimZ);
SAME_PLACE(shared_bytes, sharedMemBytes);
SAME_PLACE(stream, hStream);
SAME_PLACE(attributes, attrs);
SAME_PLACE(n_attributes, numAttrs);

/* The functions: their lists again, with the driver's names for our types. */
#define pkv_i_cu_device             CUdevice
#define pkv_i_cu_address            CUdeviceptr
#define pkv_i_cu_context            CUcontext
#define pkv_i_cu_module             CUmodule
#define pkv_i_cu_function           CUfunction
#define pkv_i_cu_stream             CUstream
#define pkv_i_cu_device_attribute   CUdevice_attribute
#define pkv_i_cu_pointer_attribute  CUpointer_attribute
#define pkv_i_cu_function_attribute CUfunction_attribute
#define pkv_i_cu_launch_config      CUlaunchConfig
#define device_pointer              CUdeviceptr
#define driver_stream               CUstream
#define driver_device               CUdevice
#define driver_code                 CUresult
#define driver_attribute            CUdevice_attribute
#define driver_mode                 CUstreamCaptureMode
#define context                     CUcontext
#define captured                    CUgraph
#define gpu_event                   CUevent
#define gpu_graph                   CUgraphExec

#define SAME_FUNCTION(name, symbol, parameters)                                     \
    _Static_assert(__builtin_types_compatible_p(__typeof__(&symbol),                \
                                                CUresult (*) parameters), #symbol);
PKV_I_DRIVER_FUNCTIONS(SAME_FUNCTION)
PKV_I_DRIVER_OPTIONAL(SAME_FUNCTION)
DRIVER_FUNCTIONS(SAME_FUNCTION)
