/* Which instruction set runs: one atomic pointer to constant tables. */
#include "kernels.h"

#include <pagedkv/pagedkv.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define PKV_ISA(isa_name, can_run, copy_fn, finish_fn, cast_fn) \
    static bool usable_##isa_name(void)                         \
    {                                                           \
        return can_run;                                         \
    }
#include "kernels.def"
#undef PKV_ISA

#define PKV_ISA(isa_name, can_run, copy_fn, finish_fn, cast_fn) \
    {#isa_name, usable_##isa_name, copy_fn, finish_fn, cast_fn},
static const pkv_i_kernels tables[] = {
#include "kernels.def"
};
#undef PKV_ISA

enum { N_TABLES = sizeof tables / sizeof tables[0] };

/* NULL until the first use.  Racing threads store the same value. */
static _Atomic(const pkv_i_kernels *) current;

const pkv_i_kernels *pkv_i_kernels_at(int32_t i)
{
    return i >= 0 && i < N_TABLES ? &tables[i] : NULL;
}

static const pkv_i_kernels *find(const char *name)
{
    for (int32_t i = 0; i < N_TABLES; i++) {
        if (strcmp(tables[i].isa, name) == 0) {
            return &tables[i];
        }
    }
    return NULL;
}

/* The last usable one, or the one that the environment asks for. */
static const pkv_i_kernels *choose(void)
{
    const char          *wish = getenv("PAGEDKV_ISA");
    const pkv_i_kernels *best = wish != NULL ? find(wish) : NULL;
    if (best != NULL && best->usable()) {
        return best;
    }
    best = &tables[0];
    for (int32_t i = 1; i < N_TABLES; i++) {
        if (tables[i].usable()) {
            best = &tables[i];
        }
    }
    return best;
}

const pkv_i_kernels *pkv_i_kernels_current(void)
{
    const pkv_i_kernels *k = atomic_load_explicit(&current, memory_order_relaxed);
    if (k == NULL) {
        k = choose();
        atomic_store_explicit(&current, k, memory_order_relaxed);
    }
    return k;
}

const char *pkv_isa_name(int32_t i)
{
    return i >= 0 && i < N_TABLES ? tables[i].isa : NULL;
}

int32_t pkv_isa_usable(int32_t i)
{
    return i >= 0 && i < N_TABLES && tables[i].usable() ? 1 : 0;
}

const char *pkv_isa_current(void)
{
    return pkv_i_kernels_current()->isa;
}

pkv_status pkv_isa_select(const char *name)
{
    const pkv_i_kernels *k = name != NULL ? find(name) : choose();
    if (k == NULL) {
        return PKV_E_INVALID;
    }
    if (!k->usable()) {
        return PKV_E_UNSUPPORTED;
    }
    atomic_store_explicit(&current, k, memory_order_relaxed);
    return PKV_OK;
}
