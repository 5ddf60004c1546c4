/* Evaluating expressions: names, members, calls. */
#include "text/template.h"

#include <string.h>

struct scope *scope_push(struct render *r, struct scope *parent)
{
    struct scope *s = render_alloc(r, sizeof(*s));
    s->parent = parent;
    return s;
}

void scope_set(struct render *r, struct scope *s, const char *name, struct value v)
{
    for (u32 i = 0; i < s->n; i++) {
        if (strcmp(s->items[i].name, name) != 0) continue;
        s->items[i].value = v;
        return;
    }
    if (s->n == s->cap) {
        u32 cap = s->cap ? s->cap * 2 : 4;
        struct binding *more = render_alloc(r, cap * sizeof(*more));
        if (s->n) memcpy(more, s->items, s->n * sizeof(*more));
        s->items = more;
        s->cap = cap;
    }
    s->items[s->n++] = (struct binding){name, v};
}

static struct value look_up(struct render *r, const char *name)
{
    for (const struct scope *s = r->scope; s; s = s->parent) {
        for (u32 i = 0; i < s->n; i++) {
            if (strcmp(s->items[i].name, name) == 0) return s->items[i].value;
        }
    }
    const struct value *v = dict_get_name(r, r->context, name, strlen(name));
    if (v) return *v;
    const struct function *f = global_find(name);
    if (f) return (struct value){.kind = V_FUNCTION, .function = f};
    return undefined(r, "'%s' is undefined", name);
}

/* ---- members ---- */

static const char *object_name(struct value v)
{
    return v.kind == V_NONE ? "None" : type_name(v);
}

static struct value no_member(struct render *r, struct value of, const char *name)
{
    return undefined(r, "'%s%s' has no attribute '%s'", object_name(of), of.kind == V_NONE ? "" : " object",
                     name);
}

static struct value loop_member(struct render *r, const struct loop *l, const char *name)
{
    i64 n = l->list->n, at = l->at;
    const struct {
        const char *name;
        struct value value;
    } members[] = {
        {"index", v_int(at + 1)},    {"index0", v_int(at)},
        {"revindex", v_int(n - at)}, {"revindex0", v_int(n - at - 1)},
        {"first", v_bool(at == 0)},  {"last", v_bool(at == n - 1)},
        {"length", v_int(n)},        {"depth", v_int(l->depth + 1)},
        {"depth0", v_int(l->depth)},
    };
    for (size_t i = 0; i < COUNT_OF(members); i++) {
        if (strcmp(members[i].name, name) == 0) return members[i].value;
    }
    if (strcmp(name, "previtem") == 0)
        return at > 0 ? l->list->items[at - 1] : undefined(r, "there is no previous item");
    if (strcmp(name, "nextitem") == 0)
        return at + 1 < n ? l->list->items[at + 1] : undefined(r, "there is no next item");
    if (method_find(V_LOOP, name)) return (struct value){.kind = V_METHOD, .text = name};
    return undefined(r, "'loop' has no attribute '%s'", name);
}

static struct value macro_member(struct render *r, const struct macro *m, const char *name)
{
    if (strcmp(name, "name") == 0) return v_text(m->node->name);
    if (strcmp(name, "arguments") != 0) raise_unsupported(r, "this attribute of a macro");
    struct list *l = list_new(r, m->node->args.n);
    for (u32 i = 0; i < m->node->args.n; i++) list_add(r, l, v_text(m->node->args.items[i].name));
    return v_list(V_TUPLE, l);
}

/* The attribute only: what an object has before its items are looked at. V_ABSENT: none. */
struct value get_attribute(struct render *r, struct value of, const char *name)
{
    if (of.kind == V_TUPLE && of.list->group && strcmp(name, "grouper") == 0) return of.list->items[0];
    if (of.kind == V_TUPLE && of.list->group && strcmp(name, "list") == 0) return of.list->items[1];
    if (of.kind == V_CYCLER && strcmp(name, "current") == 0)
        return of.helper->items->items[of.helper->at % of.helper->items->n];
    if (of.kind == V_LOOP) return loop_member(r, of.loop, name);
    if (of.kind == V_MACRO) return macro_member(r, of.macro, name);
    if (of.kind == V_NAMESPACE) {
        const struct value *v = dict_get_name(r, of.dict, name, strlen(name));
        return v ? *v : no_member(r, of, name);
    }
    if (strncmp(name, "__", 2) == 0)
        return undefined(r, "access to attribute '%s' of '%s' object is unsafe", name, type_name(of));
    const struct function *method = method_find((enum value_kind)of.kind, name);
    if (method && !method->fn)
        return undefined(r, "access to attribute '%s' of '%s' object is unsafe", name, type_name(of));
    if (method) return (struct value){.kind = V_METHOD, .text = name};
    if ((of.kind == V_TEXT || is_number(of)) && method_is_refused(name)) raise_unsupported(r, "this method");
    static const char *const of_range[] = {"start", "stop", "step", "index", "count"};
    for (size_t i = 0; of.kind == V_RANGE && i < COUNT_OF(of_range); i++) {
        if (strcmp(name, of_range[i]) == 0) raise_unsupported(r, "this attribute of a range");
    }
    if (is_number(of) && (!strcmp(name, "real") || !strcmp(name, "imag") || !strcmp(name, "numerator") ||
                          !strcmp(name, "denominator")))
        raise_unsupported(r, "this attribute of a number");
    return (struct value){.kind = V_ABSENT};
}

struct value get_attr(struct render *r, struct value of, const char *name)
{
    if (of.kind == V_UNDEFINED) raise_error(r, "%s", of.text);
    if (of.kind == V_DICT && strncmp(name, "__", 2) == 0) { /* unsafe as an attribute, fine as a key */
        const struct value *v = dict_get_name(r, of.dict, name, strlen(name));
        if (v) return *v;
    }
    struct value v = get_attribute(r, of, name);
    if (v.kind != V_ABSENT) return v;
    if (of.kind == V_DICT) {
        const struct value *item = dict_get_name(r, of.dict, name, strlen(name));
        if (item) return *item;
    }
    return no_member(r, of, name);
}

static struct value element(struct render *r, struct value of, i64 i)
{
    i64 n = length(r, of), at = i < 0 ? i + n : i;
    if (at < 0 || at >= n) return undefined(r, "%s object has no element %lld", type_name(of), (long long)i);
    if (of.kind == V_RANGE) return v_int(of.range->start + at * of.range->step);
    if (of.kind != V_TEXT) return of.list->items[at];
    spend(r, 1 + (u64)at / 64);
    size_t from = char_offset(of, at), len = char_offset(part(of, from, of.len - from), 1);
    return part(of, from, len);
}

struct value get_item(struct render *r, struct value of, struct value key)
{
    i64 i;
    if (of.kind == V_UNDEFINED) raise_error(r, "%s", of.text);
    bool indexed = of.kind == V_TEXT || of.kind == V_LIST || of.kind == V_TUPLE || of.kind == V_RANGE;
    if (indexed && as_int(key, &i)) return element(r, of, i);
    if (of.kind == V_DICT && is_hashable(r, key)) {
        const struct value *v = dict_get(r, of.dict, key);
        if (v) return *v;
    }
    if (key.kind == V_TEXT) {
        char *name = render_alloc(r, key.len + 1);
        memcpy(name, key.text, key.len);
        struct value v = get_attribute(r, of, name);
        return v.kind != V_ABSENT ? v : no_member(r, of, name);
    }
    return undefined(r, "%s object has no such element", type_name(of));
}

/* Python's slice.indices() */
static void slice_range(struct render *r, i64 n, const struct value at[3], i64 *start, i64 *stop, i64 *step)
{
    i64 v[3] = {0, 0, 1};
    for (int i = 0; i < 3; i++) {
        if (at[i].kind == V_UNDEFINED) raise_error(r, "%s", at[i].text);
        if (at[i].kind > V_NONE && !as_int(at[i], &v[i]))
            raise_error(r, "slice indices must be integers or None");
    }
    if (v[2] == 0) raise_error(r, "slice step cannot be zero");
    i64 low = v[2] < 0 ? -1 : 0, high = v[2] < 0 ? n - 1 : n;
    for (int i = 0; i < 2; i++) {
        if (v[i] < 0) v[i] += n;
        v[i] = MAX_OF(low, MIN_OF(high, v[i]));
    }
    *step = v[2];
    *start = at[0].kind > V_NONE ? v[0] : v[2] < 0 ? n - 1 : 0;
    *stop = at[1].kind > V_NONE ? v[1] : v[2] < 0 ? -1 : n;
}

static struct value slice_text(struct render *r, struct value of, i64 start, i64 stop, i64 step)
{
    if (step == 1) {
        size_t from = char_offset(of, start), to = start < stop ? char_offset(of, stop) : from;
        return part(of, from, to - from);
    }
    struct writer w = {.safe = of.safe};
    const struct list *chars = walk(r, of);
    for (i64 i = start; step > 0 ? i < stop : i > stop; i += step) {
        write_part(r, &w, chars->items[i], 0, chars->items[i].len);
        if (__builtin_add_overflow(i, step, &(i64){0})) break;
    }
    return written(r, &w);
}

struct value get_slice(struct render *r, struct value of, const struct value at[3])
{
    i64 start, stop, step;
    if (of.kind == V_UNDEFINED) raise_error(r, "%s", of.text);
    if (of.kind == V_RANGE) raise_unsupported(r, "a slice of a range");
    if (of.kind != V_TEXT && of.kind != V_LIST && of.kind != V_TUPLE) {
        raise_error(r, "'%s' object has no slices", type_name(of));
    }
    slice_range(r, length(r, of), at, &start, &stop, &step);
    spend(r, 1 + (of.kind == V_TEXT ? of.len / 64 : of.list->n / 8));
    if (of.kind == V_TEXT) return slice_text(r, of, start, stop, step);
    struct list *l = list_new(r, 0);
    for (i64 i = start; step > 0 ? i < stop : i > stop; i += step) {
        list_add(r, l, of.list->items[i]);
        if (__builtin_add_overflow(i, step, &(i64){0})) break;
    }
    return v_list((enum value_kind)of.kind, l);
}

/* ---- calls ---- */

/* Places for more arguments: *list and **dict may bring any number. */
static void make_room(struct render *r, struct call *call, u32 items, u32 named)
{
    struct value *more = render_alloc(r, (call->n + items + 1) * sizeof(*more));
    struct binding *others = render_alloc(r, (call->n_named + named + 1) * sizeof(*others));
    if (call->n) memcpy(more, call->items, call->n * sizeof(*more));
    if (call->n_named) memcpy(others, call->named, call->n_named * sizeof(*others));
    call->items = more;
    call->named = others;
}

static void add_named(struct render *r, struct call *call, const char *name, struct value v)
{
    for (u32 k = 0; k < call->n_named; k++) {
        if (strcmp(call->named[k].name, name) == 0) raise_error(r, "keyword argument repeated: %s", name);
    }
    call->named[call->n_named++] = (struct binding){name, v};
}

static void add_stars(struct render *r, struct call *call, const struct argument *a, struct value v, u32 rest)
{
    if (a->stars == 1) {
        const struct list *l = walk(r, v);
        make_room(r, call, l->n + rest, rest);
        for (u32 i = 0; i < l->n; i++) call->items[call->n++] = l->items[i];
        return;
    }
    if (v.kind != V_DICT) raise_error(r, "argument after ** must be a mapping, not %s", type_name(v));
    make_room(r, call, rest, v.dict->n + rest);
    for (u32 i = 0; i < v.dict->n; i++) {
        const struct value *key = &v.dict->pairs[i].key;
        if (key->kind != V_TEXT) raise_error(r, "keywords must be strings");
        char *name = render_alloc(r, key->len + 1);
        memcpy(name, key->text, key->len);
        add_named(r, call, name, v.dict->pairs[i].value);
    }
}

void eval_args(struct render *r, const struct arguments *args, struct call *call)
{
    memset(call, 0, sizeof(*call));
    if (args->n == 0) return;
    make_room(r, call, args->n, args->n);
    for (u32 i = 0; i < args->n; i++) {
        struct value v = eval(r, args->items[i].value);
        if (args->items[i].stars) {
            add_stars(r, call, &args->items[i], v, args->n);
        } else if (args->items[i].name) {
            add_named(r, call, args->items[i].name, v);
        } else {
            call->items[call->n++] = v;
        }
    }
}

/* The place of a parameter in "a,b,c", or -1. */
static int param_index(const char *params, const char *name)
{
    size_t len = strlen(name);
    for (int i = 0;; i++) {
        size_t n = strcspn(params, ",");
        if (n == len && strncmp(params, name, n) == 0) return i;
        if (!params[n]) return -1;
        params += n + 1;
    }
}

static int param_count(const char *params)
{
    int n = *params != 0;
    for (; *params; params++) n += *params == ',';
    return n;
}

struct value call_function(struct render *r, const struct function *f, struct value in,
                           const struct call *call)
{
    struct value arg[PARAMS_MAX];
    memset(arg, 0, sizeof(arg));
    if (strcmp(f->params, "*") == 0) return f->fn(r, in, call, arg);
    int count = param_count(f->params);
    if (call->n > (u32)count)
        raise_error(r, "%s() takes at most %d arguments, got %u", f->name, count, call->n);
    for (u32 i = 0; i < call->n; i++) arg[i] = call->items[i];
    for (u32 i = 0; i < call->n_named; i++) {
        int at = count ? param_index(f->params, call->named[i].name) : -1;
        if (at < 0 || arg[at].kind != V_ABSENT)
            raise_error(r, "%s() got an unexpected keyword argument '%s'", f->name, call->named[i].name);
        arg[at] = call->named[i].value;
    }
    for (int i = 0; i < f->required; i++) {
        if (arg[i].kind == V_ABSENT)
            raise_error(r, "%s() misses argument %d of (%s)", f->name, i + 1, f->params);
    }
    return f->fn(r, in, call, arg);
}

struct value call_value(struct render *r, struct value callee, const struct call *call)
{
    switch (callee.kind) {
    case V_UNDEFINED: raise_error(r, "%s", callee.text);
    case V_FUNCTION: return call_function(r, callee.function, v_none(), call);
    case V_MACRO: return call_macro(r, callee.macro, call, NULL);
    case V_LOOP:
        if (call->n != 1 || call->n_named) raise_error(r, "loop() takes one argument");
        return recurse_loop(r, callee.loop, call->items[0]);
    case V_JOINER: return callee.helper->at++ ? callee.helper->by : v_text("");
    case V_METHOD: raise_unsupported(r, "calling a method that was taken from its object");
    default: raise_error(r, "'%s' object is not callable", type_name(callee));
    }
}

/* object.name(...) */
static struct value call_member(struct render *r, const struct node *member, const struct call *call,
                                struct value of)
{
    struct value v = get_attr(r, of, member->name);
    if (v.kind != V_METHOD) return call_value(r, v, call);
    return call_function(r, method_find((enum value_kind)of.kind, member->name), of, call);
}

static struct value eval_call(struct render *r, const struct node *n)
{
    struct call call;
    if (n->a->kind == N_ATTR) {
        struct value of = eval(r, n->a->a);
        eval_args(r, &n->args, &call);
        return call_member(r, n->a, &call, of);
    }
    struct value callee = eval(r, n->a);
    eval_args(r, &n->args, &call);
    return call_value(r, callee, &call);
}

/* A chain of filters ends at its input: in is what a block gave. */
struct value eval_filters(struct render *r, const struct node *n, struct value in)
{
    struct call call;
    if (!n) return in;
    go_deeper(r);
    in = n->a && n->a->kind == N_FILTER ? eval_filters(r, n->a, in) : n->a ? eval(r, n->a) : in;
    r->fault.line = n->line;
    eval_args(r, &n->args, &call);
    in = call_function(r, n->function, in, &call);
    r->depth--;
    return in;
}

/* ---- the rest ---- */

static struct value eval_list(struct render *r, const struct node *n)
{
    struct list *l = list_new(r, n->items.n);
    for (u32 i = 0; i < n->items.n; i++) list_add(r, l, eval(r, n->items.items[i]));
    return v_list(n->kind == N_LIST ? V_LIST : V_TUPLE, l);
}

static struct value eval_dict(struct render *r, const struct node *n)
{
    struct value v = {.kind = V_DICT, .dict = dict_new(r)};
    for (u32 i = 0; i < n->items.n; i += 2) {
        struct value key = eval(r, n->items.items[i]);
        dict_set(r, v.dict, key, eval(r, n->items.items[i + 1]));
    }
    return v;
}

static struct value eval_concat(struct render *r, const struct node *n)
{
    struct list *parts = list_new(r, n->items.n);
    struct writer w = {0};
    for (u32 i = 0; i < n->items.n; i++) {
        list_add(r, parts, eval(r, n->items.items[i]));
        w.safe = w.safe || (r->escapes && parts->items[i].kind == V_TEXT && parts->items[i].safe);
    }
    for (u32 i = 0; i < parts->n; i++) /* with autoescape a safe text makes the others safe */
        write_value(r, &w, w.safe ? text_escape(r, to_text(r, parts->items[i])) : parts->items[i]);
    return written(r, &w);
}

static struct value eval_compare(struct render *r, const struct node *n)
{
    struct value left = eval(r, n->items.items[0]);
    for (u32 i = 0; i + 1 < n->items.n; i++) {
        struct value right = eval(r, n->items.items[i + 1]);
        if (!compare(r, (enum op)n->ops[i], left, right)) return v_bool(false);
        left = right;
    }
    return v_bool(true);
}

static struct value eval_slice(struct render *r, const struct node *n)
{
    struct value at[3], of = eval(r, n->a);
    for (int i = 0; i < 3; i++) at[i] = n->items.items[i] ? eval(r, n->items.items[i]) : v_none();
    return get_slice(r, of, at);
}

static struct value eval_sign(struct render *r, const struct node *n)
{
    struct value v = eval(r, n->a);
    if (v.kind == V_UNDEFINED) raise_error(r, "%s", v.text);
    if (!is_number(v))
        raise_error(r, "bad operand type for unary %s: '%s'", n->kind == N_NEG ? "-" : "+", type_name(v));
    if (v.kind == V_REAL) return v_real(n->kind == N_NEG ? -v.d : v.d);
    return binary(r, n->kind == N_NEG ? OP_SUB : OP_ADD, v_int(0), v);
}

static struct value eval_test(struct render *r, const struct node *n)
{
    struct call call;
    struct value in = eval(r, n->a);
    eval_args(r, &n->args, &call);
    return call_function(r, n->function, in, &call);
}

static struct value eval_inner(struct render *r, const struct node *n)
{
    struct value v;
    switch (n->kind) {
    case N_CONST: return n->value;
    case N_NAME: return look_up(r, n->name);
    case N_LIST:
    case N_TUPLE: return eval_list(r, n);
    case N_DICT: return eval_dict(r, n);
    case N_ATTR: return get_attr(r, eval(r, n->a), n->name);
    case N_ITEM: v = eval(r, n->a); return get_item(r, v, eval(r, n->b));
    case N_SLICE: return eval_slice(r, n);
    case N_CALL: return eval_call(r, n);
    case N_FILTER: return eval_filters(r, n, v_none());
    case N_TEST: return eval_test(r, n);
    case N_NOT: return v_bool(!is_true(eval(r, n->a)));
    case N_NEG:
    case N_POS: return eval_sign(r, n);
    case N_AND: v = eval(r, n->a); return is_true(v) ? eval(r, n->b) : v;
    case N_OR: v = eval(r, n->a); return is_true(v) ? v : eval(r, n->b);
    case N_BINARY: v = eval(r, n->a); return binary(r, (enum op)n->op, v, eval(r, n->b));
    case N_CONCAT: return eval_concat(r, n);
    case N_COMPARE: return eval_compare(r, n);
    case N_COND:
        if (is_true(eval(r, n->b))) return eval(r, n->a);
        return n->c ? eval(r, n->c) : undefined(r, "the inline if was false and has no else");
    default: BUG("node %d is no expression", n->kind);
    }
}

struct value eval(struct render *r, const struct node *n)
{
    spend(r, 1);
    go_deeper(r);
    r->fault.line = n->line;
    struct value v = eval_inner(r, n);
    r->depth--;
    return v;
}
