/* Shared by the test programs; see support.h. */
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- random numbers ------------------------------------------------------ */

uint64_t rng_next(rng *r)
{
    r->state += 0x9E3779B97F4A7C15u;
    uint64_t z = r->state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

int64_t rng_range(rng *r, int64_t min, int64_t max)
{
    return min + (int64_t)(rng_next(r) % (uint64_t)(max - min + 1));
}

/* ---- fill patterns ------------------------------------------------------- */

static unsigned char pattern_byte(size_t i, int pattern, uint64_t word)
{
    static const unsigned char nans[] = {
        0x01, 0x00, 0xA0, 0x7F, 0xEF, 0xBE, 0xED, 0xFF, /* f32, signalling and quiet */
        0x01, 0x7C, 0x34, 0xFE, 0x81, 0x7F, 0xD5, 0xFF, /* f16 and bf16 */
        0x7F, 0xFF, 0x7D, 0xFE};                        /* e4m3fn and e5m2 */
    switch (pattern) {
    case FILL_RANDOM:
        return (unsigned char)(word >> (i % 8 * 8));
    case FILL_ONES:
        return 0xFF;
    case FILL_NANS:
        return nans[i % sizeof nans];
    case FILL_PERIOD:
        return (unsigned char)(i % 251);
    default:
        return 0;
    }
}

void fill(void *data, size_t n_bytes, int pattern, uint64_t seed)
{
    unsigned char *bytes = data;
    rng r = {seed};
    uint64_t word = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        if (i % 8 == 0) {
            word = rng_next(&r);
        }
        bytes[i] = pattern_byte(i, pattern, word);
    }
}

/* ---- memory between guard pages ------------------------------------------ */

static size_t system_page_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

guarded guarded_new(size_t min_bytes)
{
    size_t page_bytes = system_page_bytes();
    guarded g;
    g.room_bytes = (min_bytes / page_bytes + 1) * page_bytes;
    unsigned char *map = mmap(NULL, g.room_bytes + 2 * page_bytes, PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        fail_msg("no memory for a guarded buffer of %zu bytes", min_bytes);
    }
    g.data = map + page_bytes;
    assert_return_code(mprotect(g.data, g.room_bytes, PROT_READ | PROT_WRITE), 0);
    return g;
}

void guarded_free(guarded *g)
{
    size_t page_bytes = system_page_bytes();
    assert_return_code(munmap(g->data - page_bytes, g->room_bytes + 2 * page_bytes), 0);
    g->data = NULL;
}

void guarded_protect(const guarded *g)
{
    assert_return_code(mprotect(g->data, g->room_bytes, PROT_READ), 0);
}

unsigned char *guarded_tail(const guarded *g, size_t n_bytes)
{
    assert_true(n_bytes <= g->room_bytes);
    return g->data + (g->room_bytes - n_bytes);
}

void *test_alloc(size_t n_bytes)
{
    void *data = malloc(n_bytes == 0 ? 1 : n_bytes);
    if (data == NULL) {
        fail_msg("no memory for %zu bytes", n_bytes);
    }
    return data;
}

/* ---- reports ------------------------------------------------------------- */

/* File scope because the signal handler needs them. */
static char current_case[256] = "no case named";
static struct sigaction previous_segv;
static struct sigaction previous_bus;

void note_case(const char *variant, uint64_t seed, const char *shape, ...)
{
    char text[160];
    va_list args;
    va_start(args, shape);
    vsnprintf(text, sizeof text, shape, args);
    va_end(args);
    snprintf(current_case, sizeof current_case, "variant %s, seed %llu, %s", variant,
             (unsigned long long)seed, text);
}

static void write_text(const char *text)
{
    if (write(STDERR_FILENO, text, strlen(text)) < 0) {
        return; /* the fault itself is reported all the same */
    }
}

/* Puts the framework's handler back: the fault happens again, and that one fails the test. */
static void on_fault(int signal_number)
{
    bool is_segv = signal_number == SIGSEGV;
    write_text(is_segv ? "SIGSEGV in case: " : "SIGBUS in case: ");
    write_text(current_case);
    write_text("\n");
    sigaction(signal_number, is_segv ? &previous_segv : &previous_bus, NULL);
}

void watch_faults(void)
{
    struct sigaction action = {.sa_handler = on_fault};
    sigemptyset(&action.sa_mask);
    assert_return_code(sigaction(SIGSEGV, &action, &previous_segv), 0);
    assert_return_code(sigaction(SIGBUS, &action, &previous_bus), 0);
}

/*
 * Index of the first byte that differs, or n_bytes.  Not instrumented: caches
 * of hundreds of megabytes are compared whole, and a shadow of them would be
 * several times as large.
 */
__attribute__((no_sanitize("thread", "address")))
static size_t first_difference(const unsigned char *a, const unsigned char *b, size_t n_bytes)
{
    size_t i = 0;
    for (; i + sizeof(uint64_t) <= n_bytes; i += sizeof(uint64_t)) {
        uint64_t x;
        uint64_t y;
        memcpy(&x, a + i, sizeof x);
        memcpy(&y, b + i, sizeof y);
        if (x != y) {
            break;
        }
    }
    while (i < n_bytes && a[i] == b[i]) {
        i++;
    }
    return i;
}

void expect_same_bytes(const char *what, const void *found, const void *expected, size_t n_bytes)
{
    const unsigned char *a = found;
    const unsigned char *b = expected;
    size_t i = first_difference(a, b, n_bytes);
    if (i < n_bytes) {
        fail_msg("%s: byte %zu of %zu is 0x%02x, expected 0x%02x; %s", what, i, n_bytes, a[i],
                 b[i], current_case);
    }
}

void expect_ok(pkv_status status, const pkv_error *err)
{
    if (status != PKV_OK) {
        char line[256] = "";
        pkv_error_format(err, line, sizeof line);
        fail_msg("%s (%s); %s", pkv_status_name(status), line, current_case);
    }
}

void expect_error(pkv_status status, const pkv_error *err, pkv_status code, int32_t rule,
                  int64_t index)
{
    if (status != code) {
        fail_msg("%s, expected %s; %s", pkv_status_name(status), pkv_status_name(code),
                 current_case);
    }
    if (err->code != code || err->rule != rule || err->index != index || err->what == NULL) {
        fail_msg("error code %d rule %d index %lld, expected %d %d %lld; %s", err->code, err->rule,
                 (long long)err->index, code, rule, (long long)index, current_case);
    }
}

/* ---- slices -------------------------------------------------------------- */

void slice_list_init(slice_list *list, int64_t capacity)
{
    size_t n_bytes = (size_t)capacity * 3 * sizeof(int32_t);
    list->columns = test_alloc(n_bytes);
    fill(list->columns, n_bytes, FILL_RANDOM, 77);
    list->n = 0;
    assert_int_equal(pkv_slices_from_array(&list->view, sizeof list->view, list->columns, capacity,
                                           &list->n), PKV_OK);
}

void slice_list_free(slice_list *list)
{
    free(list->columns);
    list->columns = NULL;
}

void slice_list_add(slice_list *list, int64_t kv_cache_start, int64_t new_kv_start,
                    int64_t slice_len)
{
    assert_true(list->n < list->view.capacity);
    list->view.kv_cache_start[list->n] = (int32_t)kv_cache_start;
    list->view.new_kv_start[list->n] = (int32_t)new_kv_start;
    list->view.slice_len[list->n] = (int32_t)slice_len;
    list->n++;
}

void expect_slices(const slice_list *list, const int32_t (*expected)[3], int32_t n)
{
    const pkv_slices *found = &list->view;
    for (int32_t i = 0; i < n && i < list->n; i++) {
        if (found->kv_cache_start[i] != expected[i][0] ||
            found->new_kv_start[i] != expected[i][1] || found->slice_len[i] != expected[i][2]) {
            fail_msg("slice %d is (%d, %d, %d), expected (%d, %d, %d); %s", i,
                     found->kv_cache_start[i], found->new_kv_start[i], found->slice_len[i],
                     expected[i][0], expected[i][1], expected[i][2], current_case);
        }
    }
    if (list->n != n) {
        fail_msg("%d slices, expected %d; %s", list->n, n, current_case);
    }
}
