# The device code: one fat binary by nvcc, put into the library by the assembler.

# The flags of every compilation of it.  Contraction would round once where the CPU rounds twice.
set(PKV_NVCC_FLAGS -std=c++17 -O3 -fmad=false -I${PROJECT_SOURCE_DIR}/include)
file(GLOB pkv_cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/cuda/*.cu
     ${PROJECT_SOURCE_DIR}/src/cuda/*.h)
list(APPEND pkv_cuda_sources ${PROJECT_SOURCE_DIR}/src/cpu/numbers.h
     ${PROJECT_SOURCE_DIR}/src/cpu/cast.h ${PROJECT_SOURCE_DIR}/include/pagedkv/pagedkv_cuda.h)
find_program(PKV_NVCC nvcc HINTS ENV CUDA_PATH ENV CUDA_HOME PATH_SUFFIXES bin REQUIRED)

# Sets `out` to a source file with pkv_i_cuda_image in it.
function(pkv_cuda_image out)
  set(fatbin ${PROJECT_BINARY_DIR}/pagedkv.fatbin)
  foreach(arch ${PKV_CUDA_ARCHITECTURES})
    list(APPEND code -gencode=arch=compute_${arch},code=sm_${arch})
  endforeach()
  execute_process(COMMAND ${PKV_NVCC} --help OUTPUT_VARIABLE help)
  if(help MATCHES "--compress-mode")
    list(APPEND code --compress-mode=size) # an eighth of the bytes; unpacked once, at open
  endif()
  list(GET PKV_CUDA_ARCHITECTURES -1 newest)
  list(APPEND code -gencode=arch=compute_${newest},code=compute_${newest})
  add_custom_command(OUTPUT ${fatbin}
    COMMAND ${PKV_NVCC} ${PKV_NVCC_FLAGS} ${code} --threads 0
            -fatbin -o ${fatbin} ${PROJECT_SOURCE_DIR}/src/cuda/kernels.cu
    DEPENDS ${pkv_cuda_sources} COMMENT "nvcc: device code for ${PKV_CUDA_ARCHITECTURES}" VERBATIM)
  file(CONFIGURE OUTPUT cuda_image.c @ONLY CONTENT [[
#include <stddef.h>
extern const unsigned char pkv_i_cuda_image[];
extern const size_t        pkv_i_cuda_image_bytes;
__asm__(".section .rodata\n"
        ".balign 16\n"
        ".globl pkv_i_cuda_image\n"
        ".hidden pkv_i_cuda_image\n"
        "pkv_i_cuda_image:\n"
        ".incbin \"@fatbin@\"\n"
        "pkv_i_cuda_image_end:\n"
        ".balign 8\n"
        ".globl pkv_i_cuda_image_bytes\n"
        ".hidden pkv_i_cuda_image_bytes\n"
        "pkv_i_cuda_image_bytes:\n"
        ".quad pkv_i_cuda_image_end - pkv_i_cuda_image\n"
        ".section .note.GNU-stack,\"\",%progbits\n"
        ".text\n");
]])
  set(image ${PROJECT_BINARY_DIR}/cuda_image.c)
  set_source_files_properties(${image} PROPERTIES OBJECT_DEPENDS ${fatbin})
  set(${out} ${image} PARENT_SCOPE)
endfunction()
