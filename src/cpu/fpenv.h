/*
 * The float environment in which conversions run, whatever the caller's is:
 * rounding to nearest even, subnormals kept, no traps.
 */
#ifndef PAGEDKV_SRC_CPU_FPENV_H
#define PAGEDKV_SRC_CPU_FPENV_H

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>

static inline uint64_t pkv_i_fpenv_enter(void)
{
    const unsigned before = _mm_getcsr();
    _mm_setcsr(0x1f80);
    return before;
}

/* Exceptions that conversions raised are the caller's business no more than before. */
static inline void pkv_i_fpenv_leave(uint64_t before)
{
    _mm_setcsr((unsigned)before);
}

#elif defined(__aarch64__)

static inline uint64_t pkv_i_fpenv_enter(void)
{
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
    return before;
}

static inline void pkv_i_fpenv_leave(uint64_t before)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(before));
}

#else /* as the caller left it; docs/numerics.md says so */

static inline uint64_t pkv_i_fpenv_enter(void)
{
    return 0;
}

static inline void pkv_i_fpenv_leave(uint64_t before)
{
    (void)before;
}

#endif

#endif
