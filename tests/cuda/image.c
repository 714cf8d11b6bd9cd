/* Some device code for the fake driver, in the place of the library's, which may have none. */
#include "../../src/cuda/device.h"

const unsigned char pkv_i_cuda_image[1] = {1};
const size_t        pkv_i_cuda_image_bytes = 1;
