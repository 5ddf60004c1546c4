/* Methods of lists, dicts and loops, and the tables of all methods. */
#include "text/template.h"

#include <string.h>

#define METHOD(name)                                                                                         \
    static struct value name(struct render *r, struct value in, const struct call *call,                     \
                             const struct value *arg)
#define UNUSED (void)r, (void)in, (void)call, (void)arg

METHOD(list_index)
{
    UNUSED;
    for (u32 i = 0; i < in.list->n; i++) {
        spend(r, 1);
        if (equal(r, in.list->items[i], arg[0])) return v_int(i);
    }
    raise_error(r, "the value is not in the list");
}

METHOD(list_count)
{
    UNUSED;
    i64 n = 0;
    for (u32 i = 0; i < in.list->n; i++) n += equal(r, in.list->items[i], arg[0]);
    spend(r, in.list->n);
    return v_int(n);
}

METHOD(copy)
{
    UNUSED;
    return in; /* values do not change */
}

METHOD(get)
{
    UNUSED;
    if (!is_hashable(r, arg[0])) raise_error(r, "unhashable type: '%s'", type_name(arg[0]));
    const struct value *v = dict_get(r, in.dict, arg[0]);
    return v ? *v : arg[1].kind == V_ABSENT ? v_none() : arg[1];
}

static struct value view(struct render *r, struct value in, const char *name, bool keys, bool values)
{
    struct list *l = list_new(r, in.dict->n);
    for (u32 i = 0; i < in.dict->n; i++) {
        struct value item = keys ? in.dict->pairs[i].key : in.dict->pairs[i].value;
        if (keys && values) {
            struct list *pair = list_new(r, 2);
            list_add(r, pair, in.dict->pairs[i].key);
            list_add(r, pair, in.dict->pairs[i].value);
            item = v_list(V_TUPLE, pair);
        }
        list_add(r, l, item);
    }
    struct value v = v_list(V_VIEW, l);
    v.marks = (const u8 *)name;
    return v;
}

METHOD(keys)
{
    UNUSED;
    return view(r, in, "dict_keys", true, false);
}

METHOD(values)
{
    UNUSED;
    return view(r, in, "dict_values", false, true);
}

METHOD(items)
{
    UNUSED;
    return view(r, in, "dict_items", true, true);
}

METHOD(cycle)
{
    UNUSED;
    if (call->n == 0) raise_error(r, "no items for cycling given");
    return call->items[in.loop->at % call->n];
}

METHOD(changed)
{
    UNUSED;
    struct list *now = list_new(r, call->n);
    for (u32 i = 0; i < call->n; i++) list_add(r, now, call->items[i]);
    struct value v = v_list(V_TUPLE, now);
    bool same = in.loop->changed.kind != V_ABSENT && equal(r, in.loop->changed, v);
    in.loop->changed = v;
    return v_bool(!same);
}

static const struct function list_methods[] = {
    {"append", NULL, "", 0},           {"clear", NULL, "", 0},  {"copy", copy, "", 0},
    {"count", list_count, "value", 1}, {"extend", NULL, "", 0}, {"index", list_index, "value", 1},
    {"insert", NULL, "", 0},           {"pop", NULL, "", 0},    {"remove", NULL, "", 0},
    {"reverse", NULL, "", 0},          {"sort", NULL, "", 0},   {NULL, NULL, NULL, 0},
};
static const struct function tuple_methods[] = {
    {"count", list_count, "value", 1},
    {"index", list_index, "value", 1},
    {NULL, NULL, NULL, 0},
};
static const struct function dict_methods[] = {
    {"clear", NULL, "", 0},         {"copy", copy, "", 0},     {"fromkeys", NULL, "", 0},
    {"get", get, "key,default", 1}, {"items", items, "", 0},   {"keys", keys, "", 0},
    {"pop", NULL, "", 0},           {"popitem", NULL, "", 0},  {"setdefault", NULL, "", 0},
    {"update", NULL, "", 0},        {"values", values, "", 0}, {NULL, NULL, NULL, 0},
};
static const struct function loop_methods[] = {
    {"changed", changed, "*", 0},
    {"cycle", cycle, "*", 0},
    {NULL, NULL, NULL, 0},
};

METHOD(next_item)
{
    UNUSED;
    return in.helper->items->items[in.helper->at++ % in.helper->items->n];
}

METHOD(reset)
{
    UNUSED;
    in.helper->at = 0;
    return v_none();
}

static const struct function cycler_methods[] = {
    {"next", next_item, "", 0},
    {"reset", reset, "", 0},
    {NULL, NULL, NULL, 0},
};

static const char *const refused[] = {"as_integer_ratio", "difference", "hex",
                                      "isdisjoint",       "maketrans",  "to_bytes"};

const struct function *method_find(enum value_kind of, const char *name)
{
    static const struct {
        enum value_kind of;
        const struct function *methods;
    } tables[] = {
        {V_TEXT, text_methods},   {V_TEXT, more_text_methods}, {V_LIST, list_methods},
        {V_TUPLE, tuple_methods}, {V_DICT, dict_methods},      {V_LOOP, loop_methods},
        {V_BYTES, bytes_methods}, {V_INT, number_methods},     {V_BOOL, number_methods},
        {V_BIG, number_methods},  {V_REAL, real_methods},      {V_CYCLER, cycler_methods},
    };
    for (size_t i = 0; i < COUNT_OF(tables); i++) {
        if (tables[i].of != of) continue;
        for (const struct function *f = tables[i].methods; f->name; f++)
            if (strcmp(f->name, name) == 0) return f;
    }
    return NULL;
}

bool method_is_refused(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(refused); i++) {
        if (strcmp(refused[i], name) == 0) return true;
    }
    return false;
}
