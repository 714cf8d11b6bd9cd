/* The replay's content where new K/V and cache differ in their element types. */
#include <string.h>

#include "engine.h"
#include "quant.h"

#ifdef _OPENMP
#include <omp.h>
#endif

unsigned char *engine_scratch(const engine *e)
{
#ifdef _OPENMP
    return e->scratch + omp_get_thread_num() * e->scratch_bytes;
#else
    return e->scratch;
#endif
}

int64_t engine_scales_bytes(const engine *e)
{
    return e->scales != NULL ? e->o->num_kv_heads * (int64_t)sizeof(float) : 0;
}

unsigned char *engine_slot_scales(const engine *e, int64_t layer, int plane, int64_t slot)
{
    const int64_t slots = e->result->num_pages * e->o->page_size;
    return e->scales + ((2 * layer + plane) * slots + slot) * engine_scales_bytes(e);
}

/* Significant bits that are exact in the element type of the new K/V. */
static int source_bits(const engine *e)
{
    return e->o->dtype == PKV_DTYPE_F32 ? 16 : e->o->dtype == PKV_DTYPE_F16 ? 11 : 8;
}

/* The numbers of a vector stand behind all that is compared. */
static float *numbers_of(const engine *e, unsigned char *scratch)
{
    return (float *)(void *)(scratch + e->scratch_bytes -
                             e->o->head_dim * (int64_t)sizeof(float));
}

void engine_fill_source(const engine *e, const step_token *token, int64_t layer, int stamp,
                        unsigned char *row, unsigned char *scratch)
{
    const int64_t n = e->o->head_dim, vector_bytes = e->source_row_bytes / (2 * e->shape.n_heads);
    float        *numbers = numbers_of(e, scratch);
    for (int64_t v = 0; v < 2 * e->shape.n_heads; v++) {
        content_numbers(token->key, token->position, layer, v, stamp, source_bits(e), numbers, n);
        for (int64_t i = 0; i < n; i++) {
            quant_put_exact(e->o->dtype, (double)numbers[i], i, row + v * vector_bytes);
        }
    }
}

void engine_expect(const engine *e, uint64_t key, int64_t position, int64_t layer, int stamp,
                   unsigned char *scratch)
{
    if (!e->converts) {
        content_fill(&e->shape, key, position, layer, scratch);
        content_stamp(&e->shape, position, stamp, scratch);
        return;
    }
    float         *numbers = numbers_of(e, scratch);
    unsigned char *scales = scratch + e->shape.row_bytes;
    for (int64_t v = 0; v < 2 * e->shape.n_heads; v++) {
        float scale;
        content_numbers(key, position, layer, v, stamp, source_bits(e), numbers, e->o->head_dim);
        quant_vector(e->o->cache_dtype, numbers, e->o->head_dim, scratch + v * e->shape.head_bytes,
                     &scale);
        if (e->scales != NULL) {
            memcpy(scales + v % 2 * engine_scales_bytes(e) + v / 2 * (int64_t)sizeof scale, &scale,
                   sizeof scale);
        }
    }
}
