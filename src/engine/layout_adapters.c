/* Adapters in the image: for each module that one changes, its two factors, divided as the module's product is: along the outputs B,
 * along the inputs A. */
#include "engine/layout_inner.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LAYER(field) offsetof(struct layer_weights, field)

/* Which products of a layer adapters may change; of layers of experts only those of attention. */
static int product_of(const struct model_config *c, u32 layer, const struct tensor_linear *lin)
{
    static const size_t products[ADAPTED_PRODUCTS] = {[ADAPTED_QKV] = LAYER(qkv),
                                                      [ADAPTED_Q_B] = LAYER(q_b),
                                                      [ADAPTED_O] = LAYER(o),
                                                      [ADAPTED_GATE_UP] = LAYER(gate_up),
                                                      [ADAPTED_DOWN] = LAYER(down)};
    int n = c->sparse[layer] ? ADAPTED_GATE_UP : ADAPTED_PRODUCTS;
    if (lin->when && !lin->when(c, layer)) return -1;
    for (int i = 0; i < n; i++)
        if (products[i] == lin->weight) return i;
    return -1;
}

/* A module that an adapter may change: one part of a product, or all of a product that is one tensor. */
struct module {
    char name[LAYOUT_NAME];
    enum adapted_product product;
    u32 part;     /* of the product */
    u32 first, n; /* parts of the linear that it is */
    u32 outputs;  /* of the whole model */
    const struct tensor_linear *lin;
};
typedef int module_fn(void *arg, u32 layer, const struct module *m);

static int each_of(const struct builder *b, u32 layer, const struct tensor_linear *lin, int product,
                   module_fn *fn, void *arg)
{
    u32 n = 0;
    while (n < SLOT_PARTS && lin->parts[n].name) n++;
    u32 at_once = lin->fused ? n : 1;
    for (u32 i = 0; i < n; i += at_once) {
        struct module m = {
            .product = (enum adapted_product)product, .part = i, .first = i, .n = at_once, .lin = lin};
        snprintf(m.name, sizeof m.name, "model.layers.%u.%s", layer, lin->parts[i].name);
        for (u32 k = i; k < i + at_once; k++) m.outputs += dim_slice(b->c, b->shard, lin->parts[k].rows).of;
        int rc = fn(arg, layer, &m);
        if (rc) return rc;
    }
    return 0;
}

static int each_module(const struct builder *b, struct slice layers, module_fn *fn, void *arg)
{
    int rc = 0;
    for (u32 layer = layers.first; layer < layers.first + layers.n; layer++)
        for (size_t i = 0; i < TENSOR_LINEARS_N && !rc; i++) {
            int product = product_of(b->c, layer, &TENSOR_LINEARS[i]);
            if (product >= 0) rc = each_of(b, layer, &TENSOR_LINEARS[i], product, fn, arg);
        }
    return rc;
}

/* ---- the two factors of a module */
struct adder {
    const struct builder *b;
    const struct adapter *adapter;
    u32 index;
};

static size_t adapted_target(const struct adder *x, u32 layer, const struct module *m)
{
    size_t at = ((size_t)x->index * x->b->c->layers + layer) * sizeof(struct adapter_layer);
    return at + offsetof(struct adapter_layer, part[m->product][m->part]);
}

/* Outputs before those of the module in this engine's product. */
static u32 outputs_before(const struct builder *b, const struct module *m)
{
    u32 sum = 0;
    for (u32 i = 0; i < m->first; i++) sum += dim_slice(b->c, b->shard, m->lin->parts[i].rows).n;
    return sum;
}

static int add_factors(void *arg, u32 layer, const struct module *m)
{
    const struct adder *x = arg;
    const struct builder *b = x->b;
    struct adapter_module found;
    struct slice inputs = dim_slice(b->c, b->shard, m->lin->cols);
    int rc = adapter_module(x->adapter, m->name, m->outputs, inputs.of, &found, b->err);
    if (rc <= 0) return rc;
    const struct slice rank = {0, found.rank, found.rank};
    struct slot s = {.kind = SLOT_PANELS,
                     .exact = true,
                     .adapted = true,
                     .target = adapted_target(x, layer, m) + offsetof(struct adapted, a)};
    struct slot_part p = {.tensor = found.a, .files = x->adapter->files, .rows = rank, .cols = inputs};
    if (layout_stack(b, &s, m->name, p)) return b->err->code;
    layout_add(b, s);
    s.target = adapted_target(x, layer, m) + offsetof(struct adapted, b);
    s.n_out = s.n_parts = 0;
    s.outputs_before = outputs_before(b, m);
    s.scale = found.scale;
    for (u32 i = m->first, before = 0; i < m->first + m->n; i++) {
        struct slice rows = dim_slice(b->c, b->shard, m->lin->parts[i].rows);
        p = (struct slot_part){.tensor = found.b, .files = x->adapter->files, .rows = rows, .cols = rank};
        p.rows.first += before;
        p.rows.of = m->outputs;
        before += rows.of;
        if (layout_stack(b, &s, m->name, p)) return b->err->code;
    }
    layout_add(b, s);
    return 0;
}

/* ---- every tensor of an adapter is used */
struct census {
    const struct builder *b;
    const struct adapter *adapter;
    const struct tensor **used;
    u32 n;
    struct buf offered; /* modules of one layer */
};

static int note_module(void *arg, u32 layer, const struct module *m)
{
    struct census *x = arg;
    struct adapter_module found;
    struct slice inputs = dim_slice(x->b->c, x->b->shard, m->lin->cols);
    const char *name = m->lin->parts[m->first].name;
    if (layer == 0) buf_printf(&x->offered, "%s%s", x->offered.len ? ", " : "", name);
    int rc = adapter_module(x->adapter, m->name, m->outputs, inputs.of, &found, x->b->err);
    if (rc <= 0) return rc;
    x->used[x->n++] = found.a;
    x->used[x->n++] = found.b;
    return 0;
}

static bool is_used(const struct census *x, const struct tensor *t)
{
    for (u32 i = 0; i < x->n; i++)
        if (x->used[i] == t) return true;
    return false;
}

static int check_used(const struct builder *b, const struct adapter *a)
{
    size_t n = model_tensor_count(a->files);
    struct census x = {.b = b, .adapter = a, .used = mem_alloc((n + 2) * sizeof *x.used)};
    int rc = n ? each_module(b, (struct slice){0, b->c->layers, b->c->layers}, note_module, &x)
               : error_set(b->err, ERR_INPUT, a->dir, "adapter_model.safetensors holds no tensors");
    for (size_t i = 0; i < n && !rc && x.n < n; i++)
        if (!is_used(&x, model_tensor_at(a->files, i)))
            rc = error_set(
                b->err, ERR_UNSUPPORTED, a->dir,
                "tensor %.200s is not offered; of %s models, adapters may change %.*s (of %u "
                "layers), as base_model.model.model.layers.N.MODULE.lora_A.weight and lora_B.weight",
                model_tensor_name(a->files, i), b->c->arch->model_type, (int)x.offered.len,
                x.offered.len ? x.offered.data : "", b->c->layers);
    buf_release(&x.offered);
    free(x.used);
    return rc;
}

int layout_adapters(const struct builder *b)
{
    const struct adapters *list = b->c->load.adapters;
    int rc = 0;
    if (list && b->c->arch->encoder)
        return error_set(b->err, ERR_UNSUPPORTED, list->list[0].dir,
                         "adapters are for models that generate, not for encoders (%s)",
                         b->c->arch->model_type);
    for (u32 i = 0; list && i < list->n && !rc; i++) {
        struct adder x = {b, &list->list[i], i};
        rc = check_used(b, x.adapter);
        if (!rc) rc = each_module(b, b->shard->layers, add_factors, &x);
    }
    return rc;
}
