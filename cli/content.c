/* Content that can be made again: see content.h. */
#include "content.h"

#include <string.h>

/* The same idea in 32 bits, which compilers turn into vector code. */
static inline uint32_t mix32(uint32_t x)
{
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

static uint64_t vector_seed(uint64_t key, int64_t position, int64_t layer, int64_t vector)
{
    const uint64_t of_layer = content_mix(content_mix(key) + (uint64_t)position) + (uint64_t)layer;
    return content_mix(content_mix(of_layer) + (uint64_t)vector);
}

static inline uint32_t seeded_word(uint64_t seed, int64_t i)
{
    return mix32((uint32_t)seed + (uint32_t)i * 0x9e3779b9u) ^ (uint32_t)(seed >> 32);
}

static void fill_vector(uint64_t seed, unsigned char *out, int64_t n_bytes)
{
    const int64_t n_words = n_bytes / 4;
    for (int64_t i = 0; i < n_words; i++) {
        uint32_t word = seeded_word(seed, i);
        memcpy(out + 4 * i, &word, 4);
    }
    uint32_t last = seeded_word(seed, n_words);
    memcpy(out + 4 * n_words, &last, (size_t)(n_bytes % 4));
}

void content_fill(const content_shape *shape, uint64_t key, int64_t position, int64_t layer,
                  unsigned char *row)
{
    for (int64_t i = 0; i < 2 * shape->n_heads; i++) {
        /* i counts K0, V0, K1, ...: head and plane in one number. */
        fill_vector(vector_seed(key, position, layer, i), row + i * shape->head_bytes,
                    shape->head_bytes);
    }
}

void content_numbers(uint64_t key, int64_t position, int64_t layer, int64_t vector, int stamp,
                     int bits, float *numbers, int64_t n)
{
    static const float stamps[CONTENT_STAMPS] = {0, 1, -1, 3.5f};
    const uint64_t     seed = vector_seed(key, position, layer, vector);
    for (int64_t i = 0; i < n; i++) {
        const int32_t whole = (int32_t)seeded_word(seed, i) >> (32 - bits);
        numbers[i] = (float)whole / (float)(1 << (bits - 3));
    }
    if (stamp > 0) {
        numbers[position % n] = stamps[stamp];
    }
}

void content_stamp(const content_shape *shape, int64_t position, int stamp, unsigned char *row)
{
    const int64_t byte = position % shape->head_bytes;
    for (int64_t i = 0; i < 2 * shape->n_heads; i++) {
        row[i * shape->head_bytes + byte] ^= (unsigned char)stamp;
    }
}

bool content_is_poison(const unsigned char *bytes, size_t n_bytes)
{
    /* All bytes are the first one, and the first one is poison. */
    return n_bytes == 0 ||
           (bytes[0] == CONTENT_POISON && memcmp(bytes, bytes + 1, n_bytes - 1) == 0);
}
