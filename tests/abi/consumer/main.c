/* A program of someone else: plans one step, writes it, reads it back. */
#include <pagedkv/pagedkv.h>

#include <stdio.h>
#include <string.h>

enum { PAGES = 8, PAGE_SIZE = 4, HEADS = 2, HEAD_DIM = 8, TOKENS = 7 };

static unsigned short memory[PAGES][PAGE_SIZE][2 * HEADS][HEAD_DIM];
static unsigned short rows[TOKENS][2 * HEADS][HEAD_DIM];
static unsigned short back[TOKENS][2 * HEADS][HEAD_DIM];

static int fails(const char *call, const pkv_error *err)
{
    char line[256];
    pkv_error_format(err, line, sizeof line);
    fprintf(stderr, "%s: %s\n", call, line);
    return 1;
}

int main(void)
{
    const int32_t computed[] = {2, 0};
    const int32_t scheduled[] = {4, 3};
    const int32_t block_table[] = {5, 1, 3, 0};
    int32_t columns[3 * 4];
    int32_t n_slices = 0;
    pkv_batch batch = {0};
    pkv_slices slices;
    pkv_cache cache;
    pkv_new_kv new_kv;
    pkv_rows out;
    pkv_error err;

    batch.struct_size = sizeof batch;
    batch.n_requests = 2;
    batch.computed = computed;
    batch.scheduled = scheduled;
    batch.block_table = block_table;
    batch.block_table_stride = 2;
    batch.block_table_width = 2;
    batch.page_size = PAGE_SIZE;
    memset(rows, 0x3C, sizeof rows);
    if (pkv_version() / 100 != PKV_VERSION_MAJOR * 100 + PKV_VERSION_MINOR ||
        pkv_slices_from_array(&slices, sizeof slices, columns, 4, &n_slices) != PKV_OK ||
        pkv_cache_combined(&cache, sizeof cache, memory, PAGES, PAGE_SIZE, HEADS, HEAD_DIM,
                           PKV_DTYPE_BF16) != PKV_OK ||
        pkv_new_kv_combined(&new_kv, sizeof new_kv, rows, TOKENS, HEADS, HEAD_DIM,
                            PKV_DTYPE_BF16) != PKV_OK ||
        pkv_rows_combined(&out, sizeof out, back, TOKENS, HEADS, HEAD_DIM, PKV_DTYPE_BF16) !=
            PKV_OK) {
        return 1;
    }
    if (pkv_plan(&batch, PAGE_SIZE, &slices, NULL, &err) != PKV_OK) {
        return fails("pkv_plan", &err);
    }
    if (pkv_update(&cache, &new_kv, &slices, NULL, &err) != PKV_OK) {
        return fails("pkv_update", &err);
    }
    if (pkv_gather(&cache, &out, &slices, NULL, &err) != PKV_OK) {
        return fails("pkv_gather", &err);
    }
    return n_slices == 3 && memcmp(rows, back, sizeof rows) == 0 ? 0 : 1;
}
