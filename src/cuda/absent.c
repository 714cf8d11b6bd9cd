/* The device code of a library that was built without any. */
#include "device.h"

const unsigned char pkv_i_cuda_image[1] = {0};
const size_t        pkv_i_cuda_image_bytes = 0;
