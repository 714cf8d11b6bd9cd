/* What a replay says at the end: a table for people, an object for programs. */
#include "replay.h"

#include <inttypes.h>
#include <langinfo.h>
#include <string.h>

static const char *const way_names[N_WAYS] = {"static", "exact", "merged"};
static const char *const kind_names[N_KINDS] = {"decode only", "with prefill"};

replay_kind replay_total(const replay_result *r)
{
    replay_kind total = r->kind[KIND_DECODE];
    total.steps += r->kind[KIND_PREFILL].steps;
    total.tokens += r->kind[KIND_PREFILL].tokens;
    for (int way = 0; way < N_WAYS; way++) {
        total.slices[way] += r->kind[KIND_PREFILL].slices[way];
        total.update_ns[way] += r->kind[KIND_PREFILL].update_ns[way];
    }
    return total;
}

/* Bytes that one way wrote: each token once, all layers. */
static double bytes_written(const replay_options *o, const replay_result *r, int64_t tokens)
{
    return (double)tokens * (double)r->row_bytes * (double)o->num_layers;
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : 0;
}

/* ---- the table ------------------------------------------------------------------ */

static void print_head(FILE *out, const replay_options *o, const trace *t, const replay_result *r)
{
    fprintf(out, "trace     %s\n", o->trace_path != NULL ? o->trace_path : "synthetic chat");
    fprintf(out, "          %s, %" PRId64 " requests\n", t->format, r->requests);
    fprintf(out, "cache     %" PRId64 " pages of %" PRId64 " tokens, %.2f GiB%s\n", r->num_pages,
            o->page_size, bytes_written(o, r, r->num_pages * o->page_size) / (1 << 30),
            r->huge_pages ? " on huge pages" : "");
    fprintf(out, "          %" PRId64 " layer%s of %" PRId64 " KV heads x %" PRId64 " %s\n",
            o->num_layers, o->num_layers == 1 ? "" : "s", o->num_kv_heads, o->head_dim,
            pkv_dtype_name(o->dtype));
    fprintf(out, "step      at most %" PRId64 " requests and %" PRId64 " tokens\n",
            o->max_num_reqs, o->max_num_batched_tokens);
    fprintf(out, "run       pagedkv %s, %" PRId64 " thread%s, %s%s%s\n\n", pkv_version_string(),
            o->threads, o->threads == 1 ? "" : "s", pkv_isa_current(), o->cuda ? "; cache on " : "",
            r->device);
}

static void print_checks(FILE *out, const replay_options *o, const replay_result *r)
{
    const replay_kind total = replay_total(r);
    fprintf(out, "requests  %" PRId64 " of %" PRId64 " finished in %" PRId64 " steps\n",
            r->requests_finished, r->requests, total.steps);
    fprintf(out, "tokens    %" PRId64 " written, ", total.tokens - r->recomputed_tokens);
    if (o->verify) {
        fprintf(out, "%" PRId64 " read back, %" PRId64 " differ, %" PRId64
                     " stray writes\n",
                r->verified_tokens, r->mismatched_tokens, r->poison_errors);
    } else {
        fprintf(out, "not checked (--verify off)\n");
    }
    fprintf(out, "pages     %" PRId64 " at the peak, %" PRId64 " leaked (allocator %s)\n",
            r->pages_peak, r->pages_leaked, replay_allocator_name(o->allocator));
    if (o->prefix_cache) {
        fprintf(out, "prefixes  %" PRId64 " of %" PRId64 " prompt tokens found (%.1f%%); %" PRId64
                     " pages evicted,\n          %" PRId64 " cached at the end\n",
                r->prefix_hit_tokens, r->prompt_tokens,
                100 * ratio((double)r->prefix_hit_tokens, (double)r->prompt_tokens),
                r->evictions, r->pages_cached);
    }
    if (o->recompute) {
        fprintf(out, "put back  %" PRId64 " requests; %" PRId64 " tokens written again\n",
                r->preemptions, r->recomputed_tokens);
    }
    fputc('\n', out);
}

/* The n-th percentile of a histogram over numbers of slices. */
static int64_t percentile(const int64_t *histogram, int64_t size, int64_t total, int64_t n)
{
    int64_t seen = 0;
    for (int64_t i = 0; i < size; i++) {
        seen += histogram[i];
        if (seen * 100 >= total * n) {
            return i;
        }
    }
    return 0;
}

static void print_ways(FILE *out, const replay_options *o, const replay_result *r)
{
    fprintf(out, "%-13s %-7s %8s %11s %10s %9s %10s\n", "steps", "plan", "steps", "slices/step",
            "us/step", "GB/s", "of limit");
    for (int k = 0; k < N_KINDS; k++) {
        const replay_kind *kind = &r->kind[k];
        for (int way = 0; way < N_WAYS && kind->steps > 0; way++) {
            double steps = (double)kind->steps, ns = (double)kind->update_ns[way];
            double rate = ratio(2 * bytes_written(o, r, kind->tokens), ns);
            fprintf(out, "%-13s %-7s %8" PRId64 " %11.1f %10.1f %9.1f %9.0f%%\n",
                    way == 0 ? kind_names[k] : "", way_names[way], kind->steps,
                    (double)kind->slices[way] / steps, ns / steps / 1000, rate,
                    100 * ratio(rate * 1e9, r->copy_limit_bytes_per_s));
        }
    }
    const replay_kind total = replay_total(r);
    const double      slices = (double)total.slices[WAY_EXACT];
    fprintf(out,
            "\nplanning  exact %.1f ns, merged %.1f ns a slice; exact is %.2f%% of its updates\n",
            ratio((double)r->plan_ns, slices), ratio((double)r->plan_ns_merged, slices),
            100 * ratio((double)r->plan_ns, (double)total.update_ns[WAY_EXACT]));
    fprintf(out, "limit     %.1f GB/s: ", r->copy_limit_bytes_per_s / 1e9);
    fputs(o->cuda ? "a large copy within the device, read plus written; times are\n"
                    "          of one graph a step, with its launch\n\n"
                  : "the best plain contiguous copy, read plus written; the new\n"
                    "          K/V of a step are fresh in the processor's cache, so it can be "
                    "beaten\n\n",
          out);
}

/* A bar of n eighths of a character, in the best characters that the terminal has. */
static void print_bar(FILE *out, int eighths, int width, bool utf8)
{
    static const char *const parts[8] = {"", "\u258f", "\u258e", "\u258d",
                                         "\u258c", "\u258b", "\u258a", "\u2589"};
    int full = eighths / 8, rest = eighths % 8;
    for (int i = 0; i < full; i++) {
        fputs(utf8 ? "\u2588" : "#", out);
    }
    if (rest > 0) {
        fputs(utf8 ? parts[rest] : ":", out);
    }
    for (int i = full + (rest > 0); i < width; i++) {
        fputc(' ', out);
    }
}

/* Steps with a number of slices in [from, to). */
static int64_t count_bin(const int64_t *histogram, int64_t size, int64_t from, int64_t to)
{
    int64_t n = 0;
    for (int64_t i = from; i < to && i < size; i++) {
        n += histogram[i];
    }
    return n;
}

static int64_t bin_width(const replay_result *r)
{
    int64_t most = 1, width = 1;
    for (int64_t i = 0; i < r->histogram_size; i++) {
        for (int way = 0; way < N_WAYS; way++) {
            most = r->histogram[way][i] > 0 ? i : most;
        }
    }
    while (most / width >= 16) {
        width *= 2;
    }
    return width;
}

/* Steps of each way with a number of slices in [from, to), and the largest of these counts. */
static int64_t count_bins(const replay_result *r, int64_t from, int64_t to, int64_t n[N_WAYS])
{
    int64_t most = 0;
    for (int way = 0; way < N_WAYS; way++) {
        n[way] = count_bin(r->histogram[way], r->histogram_size, from, to);
        most = n[way] > most ? n[way] : most;
    }
    return most;
}

/* One line a bin; where bins between two others are empty, one line for all of them. */
static void print_bins(FILE *out, const replay_result *r)
{
    enum { BAR = 18 };
    const bool    utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
    const int64_t width = bin_width(r);
    int64_t       most = 1, n[N_WAYS], behind_last = 0;
    for (int64_t from = 0; from < r->histogram_size; from += width) {
        int64_t highest = count_bins(r, from, from + width, n);
        most = highest > most ? highest : most;
    }
    for (int64_t from = 0; from < r->histogram_size; from += width) {
        if (count_bins(r, from, from + width, n) == 0) {
            continue;
        }
        if (behind_last > 0 && behind_last < from) {
            fprintf(out, "   ...\n");
        }
        behind_last = from + width;
        fprintf(out, "%6" PRId64 " ..%6" PRId64 "    ", from, from + width - 1);
        for (int way = 0; way < N_WAYS; way++) {
            int eighths = (int)((n[way] * BAR * 8 + most - 1) / most);
            print_bar(out, eighths, way + 1 < N_WAYS ? BAR + 2 : 0, utf8);
        }
        fputc('\n', out);
    }
}

/* Steps by their number of slices: static, exact and merged beside each other. */
static void print_histogram(FILE *out, const replay_result *r)
{
    const int64_t total = replay_total(r).steps;
    fprintf(out, "slices of a step   static              exact               merged\n");
    print_bins(out, r);
    fprintf(out, "p50 / p90 / p99    ");
    for (int way = 0; way < N_WAYS; way++) {
        char text[64];
        snprintf(text, sizeof text, "%" PRId64 " / %" PRId64 " / %" PRId64,
                 percentile(r->histogram[way], r->histogram_size, total, 50),
                 percentile(r->histogram[way], r->histogram_size, total, 90),
                 percentile(r->histogram[way], r->histogram_size, total, 99));
        fprintf(out, way + 1 < N_WAYS ? "%-20s" : "%s\n", text);
    }
}

void replay_print(FILE *out, const replay_options *o, const trace *t, const replay_result *r)
{
    print_head(out, o, t, r);
    print_checks(out, o, r);
    if (replay_total(r).steps > 0) {
        print_ways(out, o, r);
        print_histogram(out, r);
    }
}

/* ---- the object --------------------------------------------------------------------- */

/* A ratio without a denominator is null. */
static json_t *json_ratio(double a, double b)
{
    return b > 0 ? json_real(a / b) : json_null();
}

static json_t *kind_json(const replay_options *o, const replay_result *r, const replay_kind *k)
{
    json_t *object = json_pack("{s:I, s:I}", "steps", (json_int_t)k->steps, "tokens_written",
                               (json_int_t)k->tokens);
    for (int way = 0; object != NULL && way < N_WAYS; way++) {
        char   slices[32], ns[32], rate[48];
        double bytes = 2 * bytes_written(o, r, k->tokens);
        snprintf(slices, sizeof slices, "slices_%s", way_names[way]);
        snprintf(ns, sizeof ns, "update_ns_%s", way_names[way]);
        snprintf(rate, sizeof rate, "update_bytes_per_s_%s", way_names[way]);
        if (json_object_set_new(object, slices, json_integer(k->slices[way])) != 0 ||
            json_object_set_new(object, ns, json_integer(k->update_ns[way])) != 0 ||
            json_object_set_new(object, rate,
                                json_ratio(bytes * 1e9, (double)k->update_ns[way])) != 0) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}

static json_t *options_json(const replay_options *o, const replay_result *r)
{
    return json_pack("{s:s?, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:s, s:I, s:I, s:I, s:s, "
                     "s:s?, s:b, s:s, s:s, s:b, s:s, s:s}",
                     "trace", o->trace_path, "arrivals", o->follow_arrivals ? "trace" : "now",
                     "page_size", (json_int_t)o->page_size, "num_pages", (json_int_t)r->num_pages,
                     "max_num_reqs", (json_int_t)o->max_num_reqs, "max_num_batched_tokens",
                     (json_int_t)o->max_num_batched_tokens, "num_kv_heads",
                     (json_int_t)o->num_kv_heads, "head_dim", (json_int_t)o->head_dim, "dtype",
                     pkv_dtype_name(o->dtype), "cache_dtype", pkv_dtype_name(o->cache_dtype),
                     "num_layers", (json_int_t)o->num_layers, "num_slices_per_block",
                     (json_int_t)o->num_slices_per_block, "threads", (json_int_t)o->threads,
                     "backend", o->cuda ? "cuda" : "cpu", "device", o->cuda ? r->device : NULL,
                     "verify", o->verify, "isa", pkv_isa_current(), "version",
                     pkv_version_string(), "huge_pages", r->huge_pages, "prefix_cache",
                     o->prefix_cache ? "on" : "off", "preempt",
                     o->recompute ? "recompute" : "refuse");
}

static json_t *counts_json(const replay_options *o, const replay_result *r, const replay_kind *all)
{
    return json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, "
        "s:I, s:I}",
        "requests", (json_int_t)r->requests, "requests_finished", (json_int_t)r->requests_finished,
        "steps", (json_int_t)all->steps, "tokens_written",
        (json_int_t)(all->tokens - r->recomputed_tokens), "prompt_tokens",
        (json_int_t)r->prompt_tokens, "slices_static", (json_int_t)all->slices[WAY_STATIC],
        "slices_exact", (json_int_t)all->slices[WAY_EXACT], "slices_merged",
        (json_int_t)all->slices[WAY_MERGED], "bytes_written",
        (json_int_t)(all->tokens * r->row_bytes * o->num_layers), "plan_ns",
        (json_int_t)r->plan_ns, "plan_ns_merged", (json_int_t)r->plan_ns_merged,
        "update_ns_static", (json_int_t)all->update_ns[WAY_STATIC], "update_ns_exact",
        (json_int_t)all->update_ns[WAY_EXACT], "update_ns_merged",
        (json_int_t)all->update_ns[WAY_MERGED], "verified_tokens", (json_int_t)r->verified_tokens,
        "mismatched_tokens", (json_int_t)r->mismatched_tokens, "poison_errors",
        (json_int_t)r->poison_errors, "plan_errors", (json_int_t)r->plan_errors, "elapsed_ns",
        (json_int_t)r->elapsed_ns);
}

static json_t *pages_json(const replay_options *o, const replay_result *r)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "allocator",
                     replay_allocator_name(o->allocator), "pages_peak", (json_int_t)r->pages_peak,
                     "pages_leaked", (json_int_t)r->pages_leaked, "largest_extent_pages",
                     (json_int_t)r->largest_extent_pages, "evictions", (json_int_t)r->evictions,
                     "cow_pages", (json_int_t)r->cow_pages, "prefix_hit_tokens",
                     (json_int_t)r->prefix_hit_tokens, "preemptions", (json_int_t)r->preemptions,
                     "recomputed_tokens", (json_int_t)r->recomputed_tokens, "pages_cached",
                     (json_int_t)r->pages_cached);
}

/* What a run without a device does not have. */
static json_t *device_json(const replay_options *o, int64_t value)
{
    return o->cuda ? json_integer(value) : json_null();
}

json_t *replay_json(const replay_options *o, const trace *t, const replay_result *r)
{
    const replay_kind all = replay_total(r);
    const double      bytes = 2 * bytes_written(o, r, all.tokens);
    const double      seconds = (double)all.update_ns[WAY_EXACT] / 1e9;
    json_t           *limit = r->copy_limit_bytes_per_s > 0 ? json_real(r->copy_limit_bytes_per_s)
                                                            : json_null();
    json_t           *root = counts_json(o, r, &all);
    json_t           *rest =
        json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:s, s:s?, s:o, s:o}",
                  "copy_limit_bytes_per_s", limit, "update_bytes_per_s",
                  json_ratio(bytes, seconds), "limit_fraction",
                  json_ratio(bytes, seconds * r->copy_limit_bytes_per_s), "decode_only",
                  kind_json(o, r, &r->kind[KIND_DECODE]), "with_prefill",
                  kind_json(o, r, &r->kind[KIND_PREFILL]), "options", options_json(o, r), "format",
                  t->format, "series", o->series_path, "graphs", device_json(o, r->n_graphs),
                  "status_word", device_json(o, r->status_word));
    json_t           *pages = pages_json(o, r);
    if (root == NULL || rest == NULL || pages == NULL || json_object_update(root, pages) != 0 ||
        json_object_update(root, rest) != 0) {
        json_decref(root);
        root = NULL;
    }
    json_decref(pages);
    json_decref(rest);
    return root;
}
