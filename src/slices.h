/* Slices: reading the caller's struct and refusing what must not be copied. */
#ifndef PAGEDKV_SRC_SLICES_H
#define PAGEDKV_SRC_SLICES_H

#include "internal.h"

/* The arrays that a plan is written to: struct, rows and count are there. */
pkv_status pkv_i_slices_writable(const pkv_slices *slices, pkv_error *err);

#endif
