# The tests of the CUDA backend; paths are those of the folder above.

# ---- a driver without a GPU, which runs the kernels as plain C ----------------
add_library(fake_cuda SHARED cuda/fake_driver.c cuda/fake_graph.c cuda/fake_stream.c
            cuda/emulated.c)
set(fake_cuda_dir ${CMAKE_CURRENT_BINARY_DIR}/fake_cuda)
set_target_properties(fake_cuda PROPERTIES C_STANDARD 11 C_EXTENSIONS ON OUTPUT_NAME cuda SOVERSION 1
  C_VISIBILITY_PRESET hidden LIBRARY_OUTPUT_DIRECTORY ${fake_cuda_dir})
target_include_directories(fake_cuda PRIVATE ../include)
target_compile_options(fake_cuda PRIVATE -ffp-contract=off)
target_link_libraries(fake_cuda PRIVATE pkv_options Threads::Threads m)
add_library(cuda_support OBJECT cuda/main.c ../cli/gpu.c)
set_target_properties(cuda_support PROPERTIES C_STANDARD 11 C_EXTENSIONS ON)
target_link_libraries(cuda_support PUBLIC pkv_options pagedkv::static PkgConfig::cmocka)
if(NOT PKV_CUDA)
  set(cuda_image cuda/image.c) # something to load: the library has no code
endif()

# A program cuda_<name> that exits with 77 where no GPU is, and the test with the fake driver.
function(pkv_add_cuda_test name)
  pkv_add_test(cuda_${name} ${ARGN} ${cuda_image} $<TARGET_OBJECTS:cuda_support>
               $<TARGET_OBJECTS:test_support>)
  target_link_libraries(test_cuda_${name} PRIVATE ${CMAKE_DL_LIBS})
  add_dependencies(test_cuda_${name} fake_cuda)
  set_tests_properties(cuda_${name} PROPERTIES
    ENVIRONMENT "OMP_WAIT_POLICY=passive;PAGEDKV_CUDA_NEEDED=1"
    ENVIRONMENT_MODIFICATION LD_LIBRARY_PATH=path_list_prepend:${fake_cuda_dir})
endfunction()
pkv_add_cuda_test(gpu cuda/test_gpu.c)
pkv_add_cuda_test(launch cuda/test_launch.c)
pkv_add_cuda_test(open cuda/test_open.c)
target_link_options(test_cuda_open PRIVATE "LINKER:--wrap=dlsym" "LINKER:--wrap=dlopen"
                    "LINKER:--wrap=dlclose" "LINKER:--wrap=calloc")
if(NOT PKV_CUDA)
  pkv_add_test(cuda_absent cuda/test_absent.c $<TARGET_OBJECTS:test_support>)
  set_tests_properties(cuda_absent PROPERTIES
    ENVIRONMENT_MODIFICATION LD_LIBRARY_PATH=path_list_prepend:${fake_cuda_dir})
endif()

# The kernels with a thread for each of a block's: barriers, races, lanes that wait.
pkv_add_test(cuda_simt cuda/test_simt.c cuda/simt.c cuda/simt_kernels.c cuda/emulated.c
             $<TARGET_OBJECTS:test_support>)
target_compile_options(test_cuda_simt PRIVATE -ffp-contract=off -fno-strict-aliasing)
target_link_libraries(test_cuda_simt PRIVATE m)

# What only a device has: counts and slices that the host does not see, streams, far offsets.
set(device_tests counts faults layers moving refusals scales tile)
if(NOT PKV_SANITIZE MATCHES thread)
  list(APPEND device_tests small)
endif()
foreach(name ${device_tests})
  pkv_add_cuda_test(${name} cuda/test_${name}.c cuda/twin.c ${convert_sources})
  target_link_libraries(test_cuda_${name} PRIVATE m)
endforeach()

# What has one thread shows nothing to the thread sanitizer, which makes it slow.
if(NOT PKV_SANITIZE MATCHES thread)
  # The suites of the host's calls once more on the device: mirror.c says how.
  set(cuda_mirror cuda/mirror.c cuda/mirror_memory.c cuda/mirror_main.c)
  foreach(name update update_layouts update_many convert moves swap numbers_places)
    pkv_add_cuda_test(same_${name} test_${name}.c ${convert_sources} ${cuda_mirror})
    target_link_libraries(test_cuda_same_${name} PRIVATE m)
    target_link_options(test_cuda_same_${name} PRIVATE
      "LINKER:--wrap=main" "LINKER:--wrap=pkv_update" "LINKER:--wrap=pkv_update_layers"
      "LINKER:--wrap=pkv_gather" "LINKER:--wrap=pkv_gather_layers" "LINKER:--wrap=pkv_copy_pages")
  endforeach()
  foreach(name plan plan_slots step)
    pkv_add_cuda_test(same_${name} test_${name}.c cuda/mirror_plan.c cuda/mirror_memory.c
                      cuda/mirror_main.c)
    target_link_options(test_cuda_same_${name} PRIVATE "LINKER:--wrap=main" "LINKER:--wrap=pkv_plan"
      "LINKER:--wrap=pkv_plan_slots_i32" "LINKER:--wrap=pkv_plan_slots_i64")
  endforeach()

  # The program, with device code that the driver runs, and mistakes that it must find.
  add_executable(pagedkv_emulated ${cli_sources} ${cuda_image} cli/fault_cuda.c)
  set_target_properties(pagedkv_emulated PROPERTIES C_STANDARD 11 C_EXTENSIONS ON)
  target_link_libraries(pagedkv_emulated PRIVATE
    pkv_options pagedkv::static PkgConfig::jansson PkgConfig::xxhash ${CMAKE_DL_LIBS} m)
  if(PKV_OPENMP)
    target_link_libraries(pagedkv_emulated PRIVATE OpenMP::OpenMP_C)
  endif()
  target_link_options(pagedkv_emulated PRIVATE "LINKER:--wrap=pkv_cuda_update_layers")
  add_dependencies(pagedkv_emulated fake_cuda)
  pkv_add_command(cuda_cli ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/cli/cuda.py
                  $<TARGET_FILE:pagedkv> ${fake_cuda_dir} $<TARGET_FILE:pagedkv_emulated>)
endif()

# The driver's interface as it is declared here, against its own header where that is.
find_program(cuda_compiler NAMES nvcc HINTS ENV CUDA_PATH ENV CUDA_HOME PATH_SUFFIXES bin)
if(cuda_compiler)
  file(REAL_PATH ${cuda_compiler} cuda_root)
  cmake_path(GET cuda_root PARENT_PATH cuda_root)
endif()
find_path(cuda_header_dir cuda.h HINTS ${cuda_root}/../include ENV CUDA_PATH ENV CUDA_HOME
          PATHS /usr/local/cuda PATH_SUFFIXES include)
if(cuda_header_dir)
  pkv_add_command(cuda_abi ${CMAKE_C_COMPILER} -std=gnu11 -Wall -Wextra -Werror -fsyntax-only
                  -I${PROJECT_SOURCE_DIR}/include -isystem ${cuda_header_dir}
                  ${CMAKE_CURRENT_SOURCE_DIR}/cuda/abi.c)
  if(NOT PKV_SANITIZE)
    add_executable(example_cuda_graph ../examples/cuda_graph.c ${cuda_image})
    target_include_directories(example_cuda_graph SYSTEM PRIVATE ${cuda_header_dir})
    target_link_libraries(example_cuda_graph PRIVATE pagedkv::static fake_cuda)
    pkv_add_command(example_cuda_graph example_cuda_graph)
    set_tests_properties(example_cuda_graph PROPERTIES PASS_REGULAR_EXPRESSION
      "step 0: 2 slices, status word 0\n +slot  80 <- row  0, 10 tokens\n +slot 154 <- row 10, 30.*\
step 1: 2 slices, status word 0\n +slot  90 <- row  0.* +slot 184 <- row  1.*step 2: 0 slices")
  endif()
else()
  message(STATUS "No cuda.h: neither cuda_abi, which compares declarations with it, nor an example")
endif()
