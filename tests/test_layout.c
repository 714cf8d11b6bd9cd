/* Views: what the builders fill, what the checks accept and refuse, how many bytes are needed. */
#include "model.h"

#include <string.h>

enum { P = 5, S = 16, H = 3, D = 40 };

static unsigned char memory[1 << 16];

static void expect_plane(const pkv_plane *plane, const void *data, int64_t page, int64_t token,
                         int64_t head, int64_t head_dim)
{
    assert_ptr_equal(plane->data, data);
    assert_int_equal(plane->page_stride_bytes, page);
    assert_int_equal(plane->token_stride_bytes, token);
    assert_int_equal(plane->head_stride_bytes, head);
    assert_int_equal(plane->head_dim, head_dim);
}

static void expect_header(const pkv_cache *c, int64_t n_heads)
{
    assert_int_equal(c->struct_size, sizeof *c);
    assert_int_equal(c->n_pages, P);
    assert_int_equal(c->page_size, S);
    assert_int_equal(c->n_heads, n_heads);
    assert_int_equal(c->dtype, PKV_DTYPE_BF16);
    assert_int_equal(c->flags, 0);
    assert_int_equal(c->k_scales.kind, PKV_SCALES_NONE);
    assert_int_equal(c->v_scales.kind, PKV_SCALES_NONE);
}

/* ---- builders ------------------------------------------------------------ */

enum { HEAD = 2 * D }; /* bytes of one bf16 head vector */

static void test_combined(void **state)
{
    (void)state;
    pkv_cache c;
    assert_int_equal(pkv_cache_combined(&c, sizeof c, memory, P, S, H, D, PKV_DTYPE_BF16), PKV_OK);
    expect_header(&c, H);
    expect_plane(&c.k, memory, S * 2 * H * HEAD, 2 * H * HEAD, 2 * HEAD, D);
    expect_plane(&c.v, memory + HEAD, S * 2 * H * HEAD, 2 * H * HEAD, 2 * HEAD, D);
}

static void test_nhd(void **state)
{
    (void)state;
    pkv_cache c;
    unsigned char *v = memory + P * S * H * HEAD;
    assert_int_equal(pkv_cache_nhd(&c, sizeof c, memory, v, P, S, H, D, PKV_DTYPE_BF16), PKV_OK);
    expect_header(&c, H);
    expect_plane(&c.k, memory, S * H * HEAD, H * HEAD, HEAD, D);
    expect_plane(&c.v, v, S * H * HEAD, H * HEAD, HEAD, D);
}

static void test_hnd(void **state)
{
    (void)state;
    pkv_cache c;
    unsigned char *v = memory + P * S * H * HEAD;
    assert_int_equal(pkv_cache_hnd(&c, sizeof c, memory, v, P, S, H, D, PKV_DTYPE_BF16), PKV_OK);
    expect_header(&c, H);
    expect_plane(&c.k, memory, S * H * HEAD, HEAD, S * HEAD, D);
    expect_plane(&c.v, v, S * H * HEAD, HEAD, S * HEAD, D);
}

static void test_content(void **state)
{
    (void)state;
    pkv_cache c;
    enum { TOKEN = HEAD + 2 * 24 };
    assert_int_equal(pkv_cache_content(&c, sizeof c, memory, P, S, H, D, 24, PKV_DTYPE_BF16),
                     PKV_OK);
    expect_header(&c, H);
    expect_plane(&c.k, memory, H * S * TOKEN, TOKEN, S * TOKEN, D);
    expect_plane(&c.v, memory + HEAD, H * S * TOKEN, TOKEN, S * TOKEN, 24);
}

static void test_mla(void **state)
{
    (void)state;
    pkv_cache c;
    assert_int_equal(pkv_cache_mla(&c, sizeof c, memory, P, S, 50, 20, 64, 96, PKV_DTYPE_BF16),
                     PKV_OK);
    expect_header(&c, 1);
    assert_ptr_equal(c.k.data, memory);
    assert_ptr_equal(c.v.data, memory + 128);
    assert_int_equal(c.k.token_stride_bytes, 192);
    assert_int_equal(c.k.page_stride_bytes, S * 192);
    assert_int_equal(c.v.token_stride_bytes, 192);
    assert_int_equal(c.v.page_stride_bytes, S * 192);
    assert_int_equal(c.k.head_dim, 50);
    assert_int_equal(c.v.head_dim, 20);
    /* Room for alignment: rope behind the latent, the row behind the rope. */
    assert_int_equal(pkv_cache_mla(&c, sizeof c, memory, P, S, 50, 20, 49, 96, PKV_DTYPE_BF16),
                     PKV_E_INVALID);
    assert_int_equal(pkv_cache_mla(&c, sizeof c, memory, P, S, 50, 20, 64, 83, PKV_DTYPE_BF16),
                     PKV_E_INVALID);
    assert_int_equal(pkv_cache_mla(&c, sizeof c, memory, P, S, 50, 20, 50, 70, PKV_DTYPE_BF16),
                     PKV_OK);
}

static void test_new_kv_and_rows(void **state)
{
    (void)state;
    pkv_new_kv n;
    pkv_rows r;
    assert_int_equal(pkv_new_kv_combined(&n, sizeof n, memory, 7, H, D, PKV_DTYPE_BF16), PKV_OK);
    assert_ptr_equal(n.v.data, memory + HEAD);
    assert_int_equal(n.k.token_stride_bytes, 2 * H * HEAD);
    assert_int_equal(n.v.head_stride_bytes, 2 * HEAD);
    assert_int_equal(pkv_rows_combined(&r, sizeof r, memory, 7, H, D, PKV_DTYPE_BF16), PKV_OK);
    assert_ptr_equal(r.v.data, memory + HEAD);
    assert_int_equal(r.v.token_stride_bytes, 2 * H * HEAD);
    assert_int_equal(r.k.head_stride_bytes, 2 * HEAD);

    unsigned char *v = memory + 7 * H * HEAD;
    assert_int_equal(pkv_new_kv_nhd(&n, sizeof n, memory, v, 7, H, D, 24, 0, PKV_DTYPE_BF16),
                     PKV_OK);
    assert_int_equal(n.k.token_stride_bytes, H * HEAD);
    assert_int_equal(n.v.token_stride_bytes, H * 48);
    assert_int_equal(n.v.head_stride_bytes, 48);
    assert_int_equal(n.v.head_dim, 24);
    assert_int_equal(pkv_rows_nhd(&r, sizeof r, memory, v, 7, H, D, D, 1000, PKV_DTYPE_BF16),
                     PKV_OK);
    assert_int_equal(r.k.token_stride_bytes, 1000);
    assert_int_equal(r.v.token_stride_bytes, 1000);
    assert_int_equal(pkv_new_kv_nhd(&n, sizeof n, memory, NULL, 0, H, D, 0, 0, PKV_DTYPE_BF16),
                     PKV_OK);
    assert_null(n.v.data);
    assert_int_equal(pkv_new_kv_nhd(&n, sizeof n, memory, v, 7, H, D, 24, H * HEAD - 1,
                                    PKV_DTYPE_BF16), PKV_E_INVALID); /* K does not fit */
    assert_int_equal(pkv_rows_nhd(&r, sizeof r, memory, v, -1, H, D, D, 0, PKV_DTYPE_BF16),
                     PKV_E_INVALID);
}

/* Each builder with each bad size: refused, and the struct untouched. */
static void expect_all_refused(int64_t p, int64_t s, int64_t h, int64_t d, pkv_dtype dtype)
{
    pkv_cache c;
    pkv_cache untouched;
    memset(&c, 0xAB, sizeof c);
    memset(&untouched, 0xAB, sizeof untouched);
    note_case("builders", 0, "P %lld S %lld H %lld D %lld dtype %d", (long long)p, (long long)s,
              (long long)h, (long long)d, dtype);
    assert_int_equal(pkv_cache_combined(&c, sizeof c, NULL, p, s, h, d, dtype), PKV_E_INVALID);
    assert_int_equal(pkv_cache_nhd(&c, sizeof c, NULL, NULL, p, s, h, d, dtype), PKV_E_INVALID);
    assert_int_equal(pkv_cache_hnd(&c, sizeof c, NULL, NULL, p, s, h, d, dtype), PKV_E_INVALID);
    assert_int_equal(pkv_cache_content(&c, sizeof c, NULL, p, s, h, d, 8, dtype), PKV_E_INVALID);
    assert_int_equal(pkv_cache_content(&c, sizeof c, NULL, p, s, h, 8, d, dtype), PKV_E_INVALID);
    expect_same_bytes("struct", &c, &untouched, sizeof c);
}

static void test_builders_refuse_bad_sizes(void **state)
{
    (void)state;
    const int64_t huge = (int64_t)1 << 61;
    expect_all_refused(0, S, H, D, PKV_DTYPE_BF16);
    expect_all_refused(-1, S, H, D, PKV_DTYPE_BF16);
    expect_all_refused(P, 0, H, D, PKV_DTYPE_BF16);
    expect_all_refused(P, S, 0, D, PKV_DTYPE_BF16);
    expect_all_refused(P, S, H, 0, PKV_DTYPE_BF16);
    expect_all_refused(P, S, H, -D, PKV_DTYPE_BF16);
    expect_all_refused(P, S, H, D, 0);
    expect_all_refused(P, S, H, D, 11);
    expect_all_refused(P, S, H, 7, PKV_DTYPE_INT4);
    expect_all_refused(huge, S, H, D, PKV_DTYPE_BF16);
    expect_all_refused(P, huge, H, D, PKV_DTYPE_BF16);
    expect_all_refused(P, S, huge, D, PKV_DTYPE_BF16);
    expect_all_refused(P, S, H, huge, PKV_DTYPE_BF16);
    expect_all_refused((int64_t)1 << 40, (int64_t)1 << 20, 8, 128, PKV_DTYPE_F32);
    expect_all_refused(INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, PKV_DTYPE_F32);
}

static void test_builders_and_struct_size(void **state)
{
    (void)state;
    struct {
        pkv_cache cache;
        char      tail[16];
    } longer;
    memset(&longer, 0xAB, sizeof longer);
    pkv_cache *c = &longer.cache;
    assert_int_equal(pkv_cache_nhd(c, sizeof longer, NULL, NULL, P, S, H, D, PKV_DTYPE_BF16),
                     PKV_OK);
    assert_int_equal(c->struct_size, sizeof longer);
    for (size_t i = 0; i < sizeof longer.tail; i++) {
        assert_int_equal(longer.tail[i], 0);
    }
    assert_int_equal(pkv_cache_check(c, NULL), PKV_OK);
    longer.tail[15] = 1;
    assert_int_equal(pkv_cache_check(c, NULL), PKV_E_UNSUPPORTED);
    assert_int_equal(pkv_cache_nhd(c, sizeof *c - 1, NULL, NULL, P, S, H, D, PKV_DTYPE_BF16),
                     PKV_E_UNSUPPORTED);
    assert_int_equal(pkv_cache_nhd(NULL, sizeof *c, NULL, NULL, P, S, H, D, PKV_DTYPE_BF16),
                     PKV_E_INVALID);
    pkv_slices s;
    int32_t n = 0;
    assert_int_equal(pkv_slices_from_array(&s, sizeof s, NULL, 0, &n), PKV_OK);
    assert_int_equal(pkv_slices_from_array(&s, sizeof s, NULL, 1, &n), PKV_E_INVALID);
    assert_int_equal(pkv_slices_from_array(&s, sizeof s, &n, -1, &n), PKV_E_INVALID);
    assert_int_equal(pkv_slices_from_array(&s, sizeof s, &n, 0, NULL), PKV_E_INVALID);
    assert_int_equal(pkv_slices_from_array(NULL, sizeof s, &n, 0, &n), PKV_E_INVALID);
    assert_int_equal(pkv_slices_from_array(&s, sizeof s - 1, &n, 0, &n), PKV_E_UNSUPPORTED);
}

/* ---- sizes --------------------------------------------------------------- */

static void expect_bytes(const pkv_cache *c, int64_t total)
{
    int64_t k = -1;
    int64_t v = -1;
    int64_t sum = -1;
    pkv_error err;
    expect_ok(pkv_cache_bytes(c, &k, &v, &sum, &err), &err);
    assert_int_equal(k, model_plane_bytes(c, &c->k));
    assert_int_equal(v, model_plane_bytes(c, &c->v));
    assert_int_equal(sum, total);
    expect_ok(pkv_cache_bytes(c, NULL, NULL, NULL, &err), &err);
}

/* Asked before there is memory, and again with it. */
static void test_bytes_of_every_layout(void **state)
{
    (void)state;
    static unsigned char *const bases[] = {NULL, memory};
    const int64_t dense = P * S * H * HEAD;
    for (int i = 0; i < 2; i++) {
        unsigned char *k = bases[i];
        unsigned char *v = k == NULL ? NULL : k + dense;
        pkv_cache c;
        assert_int_equal(pkv_cache_combined(&c, sizeof c, k, P, S, H, D, PKV_DTYPE_BF16), PKV_OK);
        expect_bytes(&c, 2 * dense);
        assert_int_equal(pkv_cache_nhd(&c, sizeof c, k, v, P, S, H, D, PKV_DTYPE_BF16), PKV_OK);
        expect_bytes(&c, 2 * dense);
        assert_int_equal(pkv_cache_hnd(&c, sizeof c, k, v, P, S, H, D, PKV_DTYPE_BF16), PKV_OK);
        expect_bytes(&c, 2 * dense);
        assert_int_equal(pkv_cache_content(&c, sizeof c, k, P, S, H, D, 24, PKV_DTYPE_BF16),
                         PKV_OK);
        expect_bytes(&c, P * S * H * 2 * (D + 24));
        assert_int_equal(pkv_cache_mla(&c, sizeof c, k, P, S, 50, 20, 64, 96, PKV_DTYPE_BF16),
                         PKV_OK);
        expect_bytes(&c, (P * S - 1) * 192 + 2 * (64 + 20)); /* the last row needs no padding */
        assert_int_equal(pkv_cache_nhd(&c, sizeof c, k, v, P, S, H, 6, PKV_DTYPE_INT4), PKV_OK);
        assert_int_equal(c.k.head_stride_bytes, 3);
    }
    int64_t k_bytes = -1;
    assert_int_equal(pkv_cache_bytes(NULL, &k_bytes, NULL, NULL, NULL), PKV_E_INVALID);
    assert_int_equal(k_bytes, -1);
}

/* ---- checks -------------------------------------------------------------- */

static pkv_cache good_cache(void)
{
    pkv_cache c;
    assert_int_equal(pkv_cache_nhd(&c, sizeof c, memory, memory + P * S * H * HEAD, P, S, H, D,
                                   PKV_DTYPE_BF16), PKV_OK);
    return c;
}

static void expect_cache(const pkv_cache *c, pkv_status code)
{
    pkv_error err;
    memset(&err, 0xAB, sizeof err);
    if (code == PKV_OK) {
        expect_ok(pkv_cache_check(c, &err), &err);
    } else {
        expect_error(pkv_cache_check(c, &err), &err, code, PKV_RULE_NONE, -1);
        assert_int_equal(pkv_cache_check(c, NULL), code);
    }
}

static void test_bad_cache_views(void **state)
{
    (void)state;
    const pkv_cache good = good_cache();
    pkv_cache bad[17];
    for (size_t i = 0; i < 17; i++) {
        bad[i] = good;
    }
    bad[0].n_pages = 0;
    bad[1].page_size = -1;
    bad[2].n_heads = 0;
    bad[3].k.head_dim = 0;
    bad[4].v.head_dim = -1;
    bad[5].dtype = 0;
    bad[6].dtype = 99;
    bad[7].k.page_stride_bytes = -S * H * HEAD;
    bad[8].v.token_stride_bytes = -H * HEAD;
    bad[9].k.head_stride_bytes = -HEAD;
    bad[10].k.head_stride_bytes = HEAD - 1;       /* heads overlap */
    bad[11].k.token_stride_bytes = H * HEAD - 1;  /* tokens overlap */
    bad[12].v.page_stride_bytes = S * H * HEAD - 1; /* pages overlap */
    bad[13].k.page_stride_bytes = INT64_MAX / 2;  /* the last page is past 2^63 */
    bad[14].v.data = memory + P * S * H * HEAD - 1; /* K and V share a byte */
    bad[15].v.data = NULL;                        /* V with a head_dim and no data */
    bad[16].v.data = memory;                      /* the same plane twice */
    for (size_t i = 0; i < 17; i++) {
        note_case("bad cache view", i, "P %d S %d H %d D %d", P, S, H, D);
        expect_cache(&bad[i], PKV_E_INVALID);
    }
    pkv_cache c = good;
    c.flags = 2;
    expect_cache(&c, PKV_E_UNSUPPORTED);
    c = good;
    c.struct_size--;
    expect_cache(&c, PKV_E_UNSUPPORTED);
    c.struct_size = 0;
    expect_cache(&c, PKV_E_UNSUPPORTED);
    expect_cache(NULL, PKV_E_INVALID);
}

/* Unusual, and right: each must pass. */
static void test_unusual_cache_views(void **state)
{
    (void)state;
    note_case("unusual cache view", 0, "P %d S %d H %d D %d", P, S, H, D);
    pkv_cache c = good_cache();
    c.flags = PKV_CACHE_SHARED;
    expect_cache(&c, PKV_OK);

    c = good_cache(); /* keys only */
    memset(&c.v, 0, sizeof c.v);
    expect_cache(&c, PKV_OK);

    c = good_cache(); /* [S, P, H, D]: pages inside tokens */
    c.k.page_stride_bytes = H * HEAD;
    c.k.token_stride_bytes = P * H * HEAD;
    expect_cache(&c, PKV_OK);

    c = good_cache(); /* strides of axes with one element are not looked at */
    c.n_pages = 1;
    c.n_heads = 1;
    c.k.page_stride_bytes = -1;
    c.k.head_stride_bytes = 0;
    c.v.page_stride_bytes = INT64_MAX;
    expect_cache(&c, PKV_OK);

    c = good_cache(); /* V before K, back to back */
    c.v.data = memory;
    c.k.data = memory + P * S * H * HEAD;
    expect_cache(&c, PKV_OK);

    c = good_cache(); /* K and V of each page in turn: [P, 2, S, H, D] */
    c.k.page_stride_bytes = c.v.page_stride_bytes = 2 * S * H * HEAD;
    c.v.data = memory + S * H * HEAD;
    expect_cache(&c, PKV_OK);
    c.v.data = memory + S * H * HEAD - 1;
    expect_cache(&c, PKV_E_INVALID);
    c.v.data = memory + S * H * HEAD + 1; /* its end runs into the next page's K */
    expect_cache(&c, PKV_E_INVALID);
}

/* Interleaved planes: which distances between K and V are free of overlap, by brute force. */
static void test_interleaved_planes(void **state)
{
    (void)state;
    enum { SPAN = 600 };
    pkv_cache c;
    assert_int_equal(pkv_cache_nhd(&c, sizeof c, NULL, NULL, 2, 3, 2, 5, PKV_DTYPE_BITS8), PKV_OK);
    c.k.head_stride_bytes = c.v.head_stride_bytes = 12;
    c.k.token_stride_bytes = c.v.token_stride_bytes = 30;
    c.k.page_stride_bytes = c.v.page_stride_bytes = 110;
    c.k.data = memory + SPAN;
    for (int64_t delta = -SPAN; delta <= SPAN; delta++) {
        unsigned char used[3 * SPAN] = {0};
        bool overlaps = false;
        for (int64_t i = 0; i < 2 * 3 * 2 * 5; i++) {
            int64_t at = i / 30 * 110 + i / 10 % 3 * 30 + i / 5 % 2 * 12 + i % 5;
            used[SPAN + at] = 1;
        }
        for (int64_t i = 0; i < 2 * 3 * 2 * 5; i++) {
            int64_t at = i / 30 * 110 + i / 10 % 3 * 30 + i / 5 % 2 * 12 + i % 5;
            overlaps = overlaps || used[SPAN + delta + at];
        }
        c.v.data = memory + SPAN + delta;
        note_case("interleaved", 0, "V %d bytes behind K", (int)delta);
        expect_cache(&c, overlaps ? PKV_E_INVALID : PKV_OK);
    }
}

/* Marks the bytes of a plane; false if one was marked already. */
static bool mark_plane(unsigned char *used, int64_t at, const pkv_cache *c, const pkv_plane *plane)
{
    bool fresh = true;
    for (int64_t i = 0; i < c->n_pages * c->page_size * c->n_heads; i++) {
        int64_t start = at + i / (c->page_size * c->n_heads) * plane->page_stride_bytes +
                        i / c->n_heads % c->page_size * plane->token_stride_bytes +
                        i % c->n_heads * plane->head_stride_bytes;
        for (int64_t d = 0; d < plane->head_dim; d++) {
            fresh = fresh && used[start + d] == 0;
            used[start + d] = 1;
        }
    }
    return fresh;
}

/*
 * Random strides in a small space: a view that is accepted never has two
 * elements on one byte.  (One that is refused may be sound: the rules are
 * simpler than the truth.)
 */
static void test_accepted_views_never_overlap(void **state)
{
    (void)state;
    enum { ROOM = 4096, START = ROOM / 2 };
    static unsigned char room[ROOM], used[ROOM];
    int64_t n_accepted = 0;
    for (uint64_t seed = 0; seed < 200000; seed++) {
        rng r = {seed};
        pkv_cache c;
        assert_int_equal(pkv_cache_nhd(&c, sizeof c, NULL, NULL, rng_range(&r, 1, 3),
                                       rng_range(&r, 1, 3), rng_range(&r, 1, 3), 1,
                                       PKV_DTYPE_BITS8), PKV_OK);
        c.k.head_dim = rng_range(&r, 1, 5);
        c.v.head_dim = rng_range(&r, 1, 5);
        c.k.head_stride_bytes = rng_range(&r, 1, 16);
        c.k.token_stride_bytes = rng_range(&r, 1, 50);
        c.k.page_stride_bytes = rng_range(&r, 1, 150);
        bool alike = rng_range(&r, 0, 3) > 0;
        c.v.head_stride_bytes = alike ? c.k.head_stride_bytes : rng_range(&r, 1, 16);
        c.v.token_stride_bytes = alike ? c.k.token_stride_bytes : rng_range(&r, 1, 50);
        c.v.page_stride_bytes = c.k.page_stride_bytes;
        int64_t delta = rng_range(&r, -200, 200);
        c.k.data = room + START;
        c.v.data = room + START + delta;
        if (pkv_cache_check(&c, NULL) != PKV_OK) {
            continue;
        }
        n_accepted++;
        memset(used, 0, sizeof used);
        note_case("accepted view", seed, "P %d S %d H %d, V at %d", (int)c.n_pages,
                  (int)c.page_size, (int)c.n_heads, (int)delta);
        bool apart = mark_plane(used, START, &c, &c.k);
        apart = mark_plane(used, START + delta, &c, &c.v) && apart;
        assert_true(apart);
    }
    assert_true(n_accepted > 20000);
}

/* Keys of all heads, then values of all heads in each token, of different sizes. */
static void test_whole_tokens_interleaved(void **state)
{
    (void)state;
    const int64_t k_bytes = H * HEAD, v_bytes = H * (HEAD / 2), token = k_bytes + v_bytes;
    pkv_cache c = good_cache();
    c.k.token_stride_bytes = c.v.token_stride_bytes = token;
    c.k.page_stride_bytes = c.v.page_stride_bytes = S * token;
    c.v.head_dim = D / 2;
    c.v.head_stride_bytes = HEAD / 2;
    for (int64_t delta = -token; delta <= 2 * token; delta++) {
        int64_t into = ((delta % token) + token) % token;
        c.k.data = memory + 2 * token;
        c.v.data = memory + 2 * token + delta;
        note_case("whole tokens", 0, "V %d bytes behind K", (int)delta);
        expect_cache(&c, into == k_bytes ? PKV_OK : PKV_E_INVALID);
    }
}

static void test_keys_only(void **state)
{
    (void)state;
    pkv_cache c;
    assert_int_equal(pkv_cache_nhd(&c, sizeof c, memory, NULL, P, S, H, D, PKV_DTYPE_BF16), PKV_OK);
    assert_int_equal(c.v.head_dim, 0);
    expect_cache(&c, PKV_OK);
    assert_int_equal(pkv_cache_hnd(&c, sizeof c, memory, NULL, P, S, H, D, PKV_DTYPE_BF16), PKV_OK);
    assert_int_equal(c.v.head_dim, 0);
    expect_cache(&c, PKV_OK);
}

static void test_new_kv_views(void **state)
{
    (void)state;
    pkv_error err;
    pkv_new_kv good;
    assert_int_equal(pkv_new_kv_combined(&good, sizeof good, memory, 7, H, D, PKV_DTYPE_BF16),
                     PKV_OK);
    pkv_new_kv bad[7];
    for (size_t i = 0; i < 7; i++) {
        bad[i] = good;
    }
    bad[0].n_tokens = -1;
    bad[1].n_heads = 0;
    bad[2].dtype = 0;
    bad[3].k.token_stride_bytes = -1;
    bad[4].v.head_stride_bytes = -1;
    bad[5].k.data = NULL;
    bad[6].k.token_stride_bytes = INT64_MAX / 2;
    for (size_t i = 0; i < 7; i++) {
        note_case("bad new K/V", i, "T 7");
        expect_error(pkv_new_kv_check(&bad[i], &err), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    }
    good.k.token_stride_bytes = 0; /* one row for all tokens */
    good.v.data = good.k.data;     /* K and V from the same bytes: only read */
    expect_ok(pkv_new_kv_check(&good, &err), &err);
    good.flags = 1;
    expect_error(pkv_new_kv_check(&good, &err), &err, PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1);
    assert_int_equal(pkv_new_kv_check(NULL, &err), PKV_E_INVALID);
}

static void test_rows_views(void **state)
{
    (void)state;
    pkv_error err;
    pkv_rows good;
    assert_int_equal(pkv_rows_combined(&good, sizeof good, memory, 7, H, D, PKV_DTYPE_BF16),
                     PKV_OK);
    expect_ok(pkv_rows_check(&good, &err), &err);
    pkv_rows bad = good;
    bad.k.token_stride_bytes = 0;
    expect_error(pkv_rows_check(&bad, &err), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    bad = good;
    bad.v.data = bad.k.data;
    expect_error(pkv_rows_check(&bad, &err), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    bad = good;
    bad.flags = 1;
    expect_error(pkv_rows_check(&bad, &err), &err, PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1);
    good.n_tokens = 0;
    good.k.data = NULL;
    good.v.data = NULL;
    expect_ok(pkv_rows_check(&good, &err), &err);
    assert_int_equal(pkv_rows_check(NULL, NULL), PKV_E_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_combined),
        cmocka_unit_test(test_nhd),
        cmocka_unit_test(test_hnd),
        cmocka_unit_test(test_content),
        cmocka_unit_test(test_mla),
        cmocka_unit_test(test_new_kv_and_rows),
        cmocka_unit_test(test_builders_refuse_bad_sizes),
        cmocka_unit_test(test_builders_and_struct_size),
        cmocka_unit_test(test_bytes_of_every_layout),
        cmocka_unit_test(test_bad_cache_views),
        cmocka_unit_test(test_unusual_cache_views),
        cmocka_unit_test(test_interleaved_planes),
        cmocka_unit_test(test_accepted_views_never_overlap),
        cmocka_unit_test(test_whole_tokens_interleaved),
        cmocka_unit_test(test_keys_only),
        cmocka_unit_test(test_new_kv_views),
        cmocka_unit_test(test_rows_views),
    };
    return cmocka_run_group_tests_name("layout", tests, NULL, NULL);
}
