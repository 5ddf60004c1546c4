/* Filters that choose, change and order the items of a list. */
#include "text/template.h"

#include <stdio.h>
#include <string.h>

#define FILTER(name)                                                                                         \
    static struct value name(struct render *r, struct value in, const struct call *call,                     \
                             const struct value *arg)
#define UNUSED (void)r, (void)in, (void)call, (void)arg

/* ---- attributes by path: "a.b.0" or an integer ---- */

static struct value path_step(struct render *r, struct value of, const char *name, size_t len)
{
    i64 index = 0;
    bool digits = len > 0 && len < 18;
    for (size_t i = 0; i < len; i++) {
        digits = digits && name[i] >= '0' && name[i] <= '9';
        if (digits) index = index * 10 + (name[i] - '0');
    }
    struct value key = v_int(index);
    if (!digits) {
        key = v_text("");
        key.text = name;
        key.len = (u32)len;
    }
    return get_item(r, of, key);
}

struct value attribute_path(struct render *r, struct value of, struct value path,
                            const struct value *otherwise)
{
    i64 index;
    if (as_int(path, &index)) {
        of = get_item(r, of, path);
        return of.kind == V_UNDEFINED && otherwise ? *otherwise : of;
    }
    if (path.kind != V_TEXT) raise_unsupported(r, "this kind of attribute");
    if (memchr(path.text, ',', path.len)) raise_unsupported(r, "several attributes");
    for (size_t at = 0; at <= path.len;) {
        const char *dot = memchr(path.text + at, '.', path.len - at);
        size_t to = dot ? (size_t)(dot - path.text) : path.len;
        of = path_step(r, of, path.text + at, to - at);
        if (of.kind == V_UNDEFINED && otherwise) of = *otherwise;
        at = to + 1;
    }
    return of;
}

/* ---- map, select, reject ---- */

static const struct function *named_function(struct render *r, struct value name,
                                             const struct function *(*find)(const char *), const char *what)
{
    char s[64] = "";
    if (name.kind != V_TEXT) raise_error(r, "the name of a %s must be a string", what);
    if (name.len < sizeof(s)) memcpy(s, name.text, name.len);
    const struct function *f = find(s);
    if (!f) raise_unsupported(r, "a filter or test of this name in map or select");
    return f;
}

static const struct value *named_argument(const struct call *call, const char *name)
{
    for (u32 i = 0; i < call->n_named; i++) {
        if (strcmp(call->named[i].name, name) == 0) return &call->named[i].value;
    }
    return NULL;
}

/* map, select and reject look at nothing of a value that is false. */
static const struct list *walk_if_true(struct render *r, struct value in)
{
    static const struct list empty;
    return is_true(in) ? walk(r, in) : &empty;
}

FILTER(map)
{
    UNUSED;
    struct list *out = list_new(r, 0);
    const struct list *from = walk_if_true(r, in);
    const struct value *attribute = named_argument(call, "attribute"),
                       *otherwise = named_argument(call, "default");
    struct call rest = *call;
    const struct function *f = NULL;
    if (call->n) {
        f = named_function(r, call->items[0], filter_find, "filter");
        rest.items++;
        rest.n--;
    } else if (!attribute || call->n_named > 1 + (otherwise != NULL)) {
        raise_error(r, "map requires a filter or attribute=, and nothing else but default=");
    }
    for (u32 i = 0; i < from->n; i++) {
        spend(r, 1);
        list_add(r, out,
                 f ? call_function(r, f, from->items[i], &rest)
                   : attribute_path(r, from->items[i], *attribute, otherwise));
    }
    return v_list(V_GENERATOR, out);
}

/* The items of which the test (or truth) of the item or its attribute is what is wanted. */
static struct value choose(struct render *r, struct value in, const struct call *call, bool by_attribute,
                           bool wanted)
{
    struct list *out = list_new(r, 0);
    const struct list *from = walk_if_true(r, in);
    struct call rest = *call;
    struct value path = v_none();
    if (by_attribute) {
        if (rest.n == 0) raise_error(r, "Missing parameter for attribute name");
        path = rest.items[0];
        rest.items++;
        rest.n--;
    }
    const struct function *f = NULL;
    if (rest.n) {
        f = named_function(r, rest.items[0], test_find, "test");
        rest.items++;
        rest.n--;
    }
    for (u32 i = 0; i < from->n; i++) {
        spend(r, 1);
        struct value v = by_attribute ? attribute_path(r, from->items[i], path, NULL) : from->items[i];
        bool is = is_true(f ? call_function(r, f, v, &rest) : v);
        if (is == wanted) list_add(r, out, from->items[i]);
    }
    return v_list(V_GENERATOR, out);
}

FILTER(select)
{
    UNUSED;
    return choose(r, in, call, false, true);
}

FILTER(reject)
{
    UNUSED;
    return choose(r, in, call, false, false);
}

FILTER(selectattr)
{
    UNUSED;
    return choose(r, in, call, true, true);
}

FILTER(rejectattr)
{
    UNUSED;
    return choose(r, in, call, true, false);
}

/* ---- order ---- */

struct keyed {
    struct value key, item;
};

/* The key of an item: its attribute, without case unless asked for. */
static struct value key_of(struct render *r, struct value v, struct value path, bool with_case)
{
    if (path.kind != V_ABSENT && path.kind != V_NONE) v = attribute_path(r, v, path, NULL);
    return v.kind == V_TEXT && !with_case ? text_lower(r, v) : v;
}

static struct keyed *keys_of(struct render *r, const struct list *l, struct value path, bool with_case)
{
    struct keyed *k = render_alloc(r, (l->n + 1) * sizeof(*k));
    for (u32 i = 0; i < l->n; i++)
        k[i] = (struct keyed){key_of(r, l->items[i], path, with_case), l->items[i]};
    return k;
}

/* Equal ones need no order: two undefined keys are as good as the same. */
static bool goes_before(struct render *r, const struct keyed *a, const struct keyed *b, bool backwards)
{
    spend(r, 1);
    if (equal(r, a->key, b->key)) return false;
    int c = order(r, a->key, b->key, "<");
    return c == (backwards ? 1 : -1);
}

/* Stable: a later item goes first only when it must. */
static void merge_sort(struct render *r, struct keyed *k, struct keyed *spare, u32 n, bool backwards)
{
    if (n < 2) return;
    u32 half = n / 2, a = 0, b = half, at = 0;
    merge_sort(r, k, spare, half, backwards);
    merge_sort(r, k + half, spare, n - half, backwards);
    while (a < half && b < n) spare[at++] = goes_before(r, &k[b], &k[a], backwards) ? k[b++] : k[a++];
    while (a < half) spare[at++] = k[a++];
    while (b < n) spare[at++] = k[b++];
    memcpy(k, spare, n * sizeof(*k));
}

static struct value sorted(struct render *r, struct keyed *k, u32 n, bool backwards)
{
    struct list *l = list_new(r, n);
    merge_sort(r, k, render_alloc(r, (n + 1) * sizeof(*k)), n, backwards);
    for (u32 i = 0; i < n; i++) list_add(r, l, k[i].item);
    return v_list(V_LIST, l);
}

FILTER(sort)
{
    UNUSED; /* reverse, case_sensitive, attribute */
    const struct list *l = walk(r, in);
    return sorted(r, keys_of(r, l, arg[2], is_true(arg[1])), l->n, is_true(arg[0]));
}

FILTER(dictsort)
{
    UNUSED; /* case_sensitive, by, reverse */
    bool by_value = is_text(arg[1], "value");
    if (in.kind != V_DICT) raise_error(r, "'%s' object has no attribute 'items'", type_name(in));
    if (arg[1].kind != V_ABSENT && !by_value && !is_text(arg[1], "key"))
        raise_error(r, "You can only sort by either \"key\" or \"value\"");
    struct keyed *k = render_alloc(r, (in.dict->n + 1) * sizeof(*k));
    for (u32 i = 0; i < in.dict->n; i++) {
        const struct pair *p = &in.dict->pairs[i];
        struct list *pair = list_new(r, 2);
        list_add(r, pair, p->key);
        list_add(r, pair, p->value);
        k[i] = (struct keyed){key_of(r, by_value ? p->value : p->key, v_none(), is_true(arg[0])),
                              v_list(V_TUPLE, pair)};
    }
    return sorted(r, k, in.dict->n, is_true(arg[2]));
}

static struct value extreme(struct render *r, struct value in, const struct value *arg, bool largest)
{
    const struct list *l = walk(r, in);
    struct keyed *k = keys_of(r, l, arg[1], is_true(arg[0]));
    u32 best = 0;
    if (l->n == 0) return undefined(r, "No aggregated item, sequence was empty.");
    for (u32 i = 1; i < l->n; i++) {
        int c = order(r, k[i].key, k[best].key, largest ? ">" : "<");
        if (c == (largest ? 1 : -1)) best = i;
    }
    return l->items[best];
}

FILTER(min)
{
    UNUSED;
    return extreme(r, in, arg, false);
}

FILTER(max)
{
    UNUSED;
    return extreme(r, in, arg, true);
}

FILTER(unique)
{
    UNUSED; /* case_sensitive, attribute */
    const struct list *l = walk(r, in);
    struct keyed *k = keys_of(r, l, arg[1], is_true(arg[0]));
    struct list *out = list_new(r, 0);
    struct dict *seen = dict_new(r);
    for (u32 i = 0; i < l->n; i++) {
        u32 before = seen->n;
        dict_set(r, seen, k[i].key, v_none());
        if (seen->n > before) list_add(r, out, l->items[i]);
    }
    return v_list(V_GENERATOR, out);
}

/* ---- pieces ---- */

static bool is_given(struct value v)
{
    return v.kind != V_ABSENT && v.kind != V_NONE;
}

static i64 need_count(struct render *r, struct value v, const char *what)
{
    i64 n;
    if (!as_int(v, &n)) raise_error(r, "%s must be an integer, not %s", what, type_name(v));
    if (n < 1) raise_unsupported(r, "batch or slice into less than one");
    return n;
}

FILTER(batch)
{
    UNUSED; /* linecount, fill_with */
    struct list *out = list_new(r, 0), *row = NULL;
    const struct list *l = walk(r, in);
    i64 n = need_count(r, arg[0], "batch: linecount");
    for (u32 i = 0; i < l->n; i++) {
        if (i % n == 0) {
            row = list_new(r, 0);
            list_add(r, out, v_list(V_LIST, row));
        }
        list_add(r, row, l->items[i]);
    }
    while (row && is_given(arg[1]) && row->n < n) list_add(r, row, arg[1]);
    return v_list(V_GENERATOR, out);
}

FILTER(slice)
{
    UNUSED; /* slices, fill_with */
    struct list *out = list_new(r, 0);
    const struct list *l = walk(r, in);
    i64 n = need_count(r, arg[0], "slice: slices"), each = l->n / n, longer = l->n % n, at = 0;
    spend(r, (u64)n);
    for (i64 i = 0; i < n; i++) {
        struct list *column = list_new(r, 0);
        for (i64 k = 0; k < each + (i < longer); k++) list_add(r, column, l->items[at++]);
        if (is_given(arg[1]) && i >= longer) list_add(r, column, arg[1]);
        list_add(r, out, v_list(V_LIST, column));
    }
    return v_list(V_GENERATOR, out);
}

/* Items with the same key side by side: [(grouper, list)], ordered by key. */
FILTER(groupby)
{
    UNUSED; /* attribute, default, case_sensitive */
    const struct list *l = walk(r, in);
    const struct value *otherwise = arg[1].kind == V_ABSENT ? NULL : &arg[1];
    struct keyed *k = render_alloc(r, (l->n + 1) * sizeof(*k));
    struct list *out = list_new(r, 0), *items = NULL;
    for (u32 i = 0; i < l->n; i++) {
        struct value key = attribute_path(r, l->items[i], arg[0], otherwise);
        k[i] = (struct keyed){key.kind == V_TEXT && !is_true(arg[2]) ? text_lower(r, key) : key, l->items[i]};
    }
    merge_sort(r, k, render_alloc(r, (l->n + 1) * sizeof(*k)), l->n, false);
    for (u32 i = 0; i < l->n; i++) {
        if (i == 0 || !equal(r, k[i].key, k[i - 1].key)) {
            struct list *pair = list_new(r, 2);
            pair->group = true;
            items = list_new(r, 0);
            list_add(r, pair, attribute_path(r, k[i].item, arg[0], otherwise));
            list_add(r, pair, v_list(V_LIST, items));
            list_add(r, out, v_list(V_TUPLE, pair));
        }
        list_add(r, items, k[i].item);
    }
    return v_list(V_LIST, out);
}

FILTER(sum)
{
    UNUSED; /* attribute, start */
    const struct list *l = walk(r, in);
    struct value total = arg[1].kind == V_ABSENT ? v_int(0) : arg[1];
    if (total.kind == V_TEXT) raise_error(r, "sum() can't sum strings");
    for (u32 i = 0; i < l->n; i++) {
        bool path = arg[0].kind != V_ABSENT && arg[0].kind != V_NONE;
        total = binary(r, OP_ADD, total, path ? attribute_path(r, l->items[i], arg[0], NULL) : l->items[i]);
    }
    return total;
}

const struct function list_filters[] = {
    {"batch", batch, "linecount,fill_with", 1},
    {"dictsort", dictsort, "case_sensitive,by,reverse", 0},
    {"groupby", groupby, "attribute,default,case_sensitive", 1},
    {"map", map, "*", 0},
    {"max", max, "case_sensitive,attribute", 0},
    {"min", min, "case_sensitive,attribute", 0},
    {"reject", reject, "*", 0},
    {"rejectattr", rejectattr, "*", 0},
    {"select", select, "*", 0},
    {"selectattr", selectattr, "*", 0},
    {"slice", slice, "slices,fill_with", 1},
    {"sort", sort, "reverse,case_sensitive,attribute", 0},
    {"sum", sum, "attribute,start", 0},
    {"unique", unique, "case_sensitive,attribute", 0},
    {NULL, NULL, NULL, 0},
};
