/* See input.h. */
#define _POSIX_C_SOURCE 200809L

#include "input.h"

#include <stdlib.h>
#include <string.h>

uint8_t take_byte(input *in)
{
    if (in->left == 0) {
        return 0;
    }
    in->left--;
    return *in->at++;
}

static uint64_t take_bytes(input *in, int n)
{
    uint64_t value = 0;
    for (int i = 0; i < n; i++) {
        value = value << 8 | take_byte(in);
    }
    return value;
}

int64_t take_range(input *in, int64_t min, int64_t max)
{
    uint64_t n_others = (uint64_t)max - (uint64_t)min;
    int      n_bytes = 0;
    while (n_bytes < 8 && n_others >> (8 * n_bytes) != 0) {
        n_bytes++;
    }
    uint64_t value = take_bytes(in, n_bytes);
    return (int64_t)((uint64_t)min + (n_others == UINT64_MAX ? value : value % (n_others + 1)));
}

bool take_chance(input *in, int64_t of)
{
    return take_range(in, 0, of - 1) == of - 1;
}

int64_t take_number(input *in)
{
    static const int64_t edges[] = {-1,         INT8_MAX,  INT16_MAX, INT32_MAX,
                                    INT64_MAX,  INT32_MIN, INT64_MIN, (int64_t)1 << 31,
                                    UINT32_MAX, (int64_t)1 << 32};
    int64_t n_edges = sizeof edges / sizeof edges[0];
    switch (take_range(in, 0, 7)) {
    case 7:
        return take_range(in, INT64_MIN, INT64_MAX);
    case 6:
        /* Next to an edge, or to a part of it, as an overflow in a product needs. */
        return (int64_t)((uint64_t)(edges[take_range(in, 0, n_edges - 1)] / take_range(in, 1, 4)) +
                         (uint64_t)take_range(in, 0, 2));
    case 5:
        return take_range(in, 0, 5000);
    default:
        return take_range(in, 0, 33);
    }
}

int32_t take_int32(input *in)
{
    int64_t number = take_number(in);
    int32_t low;
    memcpy(&low, &number, sizeof low);
    return low;
}

int32_t take_mostly(input *in, int64_t min, int64_t max)
{
    return take_chance(in, 16) ? take_int32(in) : (int32_t)take_range(in, min, max);
}

void take_strides(input *in, const int64_t n[3], int64_t inner_bytes, int64_t stride[3])
{
    static const int orders[][3] = {{2, 1, 0}, {1, 2, 0}, {2, 0, 1},
                                    {0, 2, 1}, {1, 0, 2}, {0, 1, 2}};
    const int *order = orders[take_range(in, 0, 5)];
    uint64_t   extent = (uint64_t)inner_bytes;
    for (int i = 0; i < 3; i++) {
        extent += take_chance(in, 4) ? (uint64_t)take_range(in, 0, 40) : 0;
        stride[order[i]] = (int64_t)extent;
        extent *= (uint64_t)n[order[i]];
    }
}

void *exactly(size_t n_bytes)
{
    void *data = malloc(n_bytes == 0 ? 1 : n_bytes);
    if (data == NULL) {
        fprintf(stderr, "no memory for %zu bytes\n", n_bytes);
        abort();
    }
    return data;
}

void fill_noise(void *memory, size_t n_bytes)
{
    unsigned char *bytes = memory;
    uint64_t       word = n_bytes;
    for (size_t i = 0; i < n_bytes; i += sizeof word) {
        word = word * 6364136223846793005u + 1442695040888963407u;
        memcpy(bytes + i, &word, n_bytes - i < sizeof word ? n_bytes - i : sizeof word);
    }
}

/* ---- captured output ----------------------------------------------------- */

void capture_begin(capture *c)
{
    for (int i = 0; i < 2; i++) {
        c->stream[i] = open_memstream(&c->text[i], &c->length[i]);
        if (c->stream[i] == NULL) {
            fprintf(stderr, "no memory for captured output\n");
            abort();
        }
    }
    /* The C library here lets its standard streams be replaced. */
    c->kept[CAPTURED_OUT] = stdout;
    c->kept[CAPTURED_ERR] = stderr;
    stdout = c->stream[CAPTURED_OUT];
    stderr = c->stream[CAPTURED_ERR];
}

void capture_end(capture *c)
{
    stdout = c->kept[CAPTURED_OUT];
    stderr = c->kept[CAPTURED_ERR];
    for (int i = 0; i < 2; i++) {
        if (fclose(c->stream[i]) != 0) {
            fprintf(stderr, "captured output could not be closed\n");
            abort();
        }
    }
}

void capture_free(capture *c)
{
    free(c->text[0]);
    free(c->text[1]);
}

bool is_one_error_line(const char *text)
{
    const char *end = strchr(text, '\n');
    return strncmp(text, "pagedkv: ", 9) == 0 && end != NULL && end[1] == '\0';
}
