/* Versions, status names, and how a failure is reported. */
#include "internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define STRING_(x) #x
#define STRING(x) STRING_(x)

int32_t pkv_version(void)
{
    return PKV_VERSION_MAJOR * 10000 + PKV_VERSION_MINOR * 100 + PKV_VERSION_PATCH;
}

const char *pkv_version_string(void)
{
    return STRING(PKV_VERSION_MAJOR) "." STRING(PKV_VERSION_MINOR) "." STRING(PKV_VERSION_PATCH);
}

const char *pkv_status_name(pkv_status status)
{
    switch (status) {
    case PKV_OK: return "PKV_OK";
    case PKV_E_INVALID: return "PKV_E_INVALID";
    case PKV_E_RANGE: return "PKV_E_RANGE";
    case PKV_E_STRICT: return "PKV_E_STRICT";
    case PKV_E_UNSUPPORTED: return "PKV_E_UNSUPPORTED";
    case PKV_E_NO_MEMORY: return "PKV_E_NO_MEMORY";
    case PKV_E_NO_PAGES: return "PKV_E_NO_PAGES";
    case PKV_E_STATE: return "PKV_E_STATE";
    case PKV_E_DEVICE: return "PKV_E_DEVICE";
    case PKV_E_IO: return "PKV_E_IO";
    case PKV_E_CORRUPT: return "PKV_E_CORRUPT";
    default: return "PKV_E_?";
    }
}

/* What err->index counts, by the rule that was broken. */
static const char *index_noun(int32_t rule)
{
    switch (rule) {
    case PKV_RULE_COMPUTED:
    case PKV_RULE_SCHEDULED:
    case PKV_RULE_TABLE:
    case PKV_RULE_LIMIT: return "request";
    case PKV_RULE_SLOT: return "token";
    case PKV_RULE_SCALE: return "head";
    case PKV_RULE_NONE:                  /* a sequence of a step */
    case PKV_RULE_PAGE:                  /* a request or, of a pool, a place in a list */
    case PKV_RULE_CAPACITY: return "at"; /* a request or, of a slot mapping, a token */
    default: return "slice";
    }
}

/* Is there something to say?  A page that is in a wrong state is no number over a limit. */
static bool has_numbers(const pkv_error *err)
{
    return err->rule != PKV_RULE_NONE &&
           (err->rule != PKV_RULE_PAGE || err->value != 0 || err->limit != 0);
}

size_t pkv_error_format(const pkv_error *err, char *buf, size_t cap_bytes)
{
    if (err == NULL) {
        if (cap_bytes > 0) {
            buf[0] = '\0';
        }
        return 0;
    }
    char place[64] = "";
    if (err->layer >= 0 && err->index >= 0) {
        snprintf(place, sizeof place, "layer %" PRId64 ", %s %" PRId64 ": ", err->layer,
                 index_noun(err->rule), err->index);
    } else if (err->layer >= 0) {
        snprintf(place, sizeof place, "layer %" PRId64 ": ", err->layer);
    } else if (err->index >= 0) {
        snprintf(place, sizeof place, "%s %" PRId64 ": ", index_noun(err->rule), err->index);
    }
    char numbers[96] = "";
    if (has_numbers(err)) {
        snprintf(numbers, sizeof numbers, " (found %" PRId64 ", limit %" PRId64 ")", err->value,
                 err->limit);
    } else if (err->detail != 0) {
        snprintf(numbers, sizeof numbers, " (code %" PRId64 ")", err->detail);
    }
    int n = snprintf(buf, cap_bytes, "%s: %s%s%s", pkv_status_name(err->code), place,
                     err->what != NULL ? err->what : "", numbers);
    return n < 0 ? 0 : (size_t)n;
}

pkv_status pkv_i_fail(pkv_error *err, pkv_status code, const char *what)
{
    return pkv_i_fail_at(err, code, PKV_RULE_NONE, -1, 0, 0, what);
}

pkv_status pkv_i_fail_at(pkv_error *err, pkv_status code, int32_t rule, int64_t index,
                         int64_t value, int64_t limit, const char *what)
{
    if (err != NULL) {
        *err = (pkv_error){.code = code, .rule = rule, .index = index, .layer = -1,
                           .value = value, .limit = limit, .detail = 0, .what = what};
    }
    return code;
}

pkv_status pkv_i_check_struct(const void *caller_struct, size_t bytes, pkv_error *err)
{
    if (caller_struct == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "a struct is NULL");
    }
    size_t caller_bytes;
    memcpy(&caller_bytes, caller_struct, sizeof caller_bytes);
    if (caller_bytes == bytes) {
        return PKV_OK;
    }
    if (caller_bytes < bytes) {
        return pkv_i_fail(err, PKV_E_UNSUPPORTED, "struct_size is too small");
    }
    const char *start = caller_struct;
    for (size_t i = bytes; i < caller_bytes; i++) {
        if (start[i] != 0) {
            return pkv_i_fail(err, PKV_E_UNSUPPORTED,
                              "a newer struct uses a field that this library does not know");
        }
    }
    return PKV_OK;
}

pkv_status pkv_i_check_out(const void *out, size_t struct_size, size_t bytes)
{
    if (out == NULL) {
        return PKV_E_INVALID;
    }
    return struct_size >= bytes ? PKV_OK : PKV_E_UNSUPPORTED;
}

void pkv_i_clear_tail(void *out, size_t struct_size, size_t bytes)
{
    if (struct_size > bytes) {
        memset((char *)out + bytes, 0, struct_size - bytes);
    }
}
