/* Running statements: output, loops, scopes, macros. */
#include "text/template.h"

#include <string.h>

/* ---- assignment ---- */

static void unpack(struct render *r, const struct node *target, struct value v)
{
    const struct list *items = walk(r, v);
    if (items->n != target->items.n)
        raise_error(r,
                    items->n > target->items.n ? "too many values to unpack (expected %u)"
                                               : "not enough values to unpack (expected %u)",
                    target->items.n);
    for (u32 i = 0; i < items->n; i++) assign(r, target->items.items[i], items->items[i]);
}

void assign(struct render *r, const struct node *target, struct value v)
{
    if (target->kind == N_TUPLE) {
        unpack(r, target, v);
    } else if (target->kind == N_NAME) {
        scope_set(r, r->scope, target->name, v);
    } else {
        struct value of = eval(r, target->a);
        if (of.kind != V_NAMESPACE) raise_error(r, "cannot assign attribute on non-namespace object");
        if (target->name[0] == '_')
            raise_error(r, "a namespace cannot hold the underscore name '%s'", target->name);
        dict_set(r, of.dict, v_text(target->name), v);
    }
}

/* ---- blocks whose output is a value ---- */

static struct value capture(struct render *r, const struct nodes *body, enum flow *flow)
{
    struct writer w = {.safe = r->escapes}, *outer = r->out;
    r->out = &w;
    *flow = run_body(r, body);
    r->out = outer;
    return written(r, &w);
}

static struct value capture_scoped(struct render *r, const struct nodes *body, enum flow *flow)
{
    struct scope *outer = r->scope;
    r->scope = scope_push(r, outer);
    struct value v = capture(r, body, flow);
    r->scope = outer;
    return v;
}

/* ---- loops ---- */

static struct list *filtered(struct render *r, const struct node *n, const struct list *items)
{
    struct scope *outer = r->scope;
    struct list *kept = list_new(r, items->n);
    for (u32 i = 0; i < items->n; i++) {
        r->scope = scope_push(r, outer);
        assign(r, n->target, items->items[i]);
        if (is_true(eval(r, n->b))) list_add(r, kept, items->items[i]);
    }
    r->scope = outer;
    return kept;
}

static void run_loop(struct render *r, const struct node *n, struct value items, int depth)
{
    struct scope *outer = r->scope;
    struct loop *loop = render_alloc(r, sizeof(*loop));
    *loop = (struct loop){.node = n, .scope = outer, .list = walk(r, items), .depth = depth};
    if (n->b) loop->list = filtered(r, n, loop->list);
    bool completed =
        false; /* as in Jinja, an iteration that ends with continue or break does not count for else */
    for (loop->at = 0; loop->at < loop->list->n; loop->at++) {
        spend(r, 1);
        r->scope = scope_push(r, outer);
        scope_set(r, r->scope, "loop", (struct value){.kind = V_LOOP, .loop = loop});
        assign(r, n->target, loop->list->items[loop->at]);
        enum flow flow = run_body(r, &n->body);
        if (flow == FLOW_BREAK) break;
        if (flow == FLOW_ON) completed = true;
    }
    if (!completed) {
        r->scope = scope_push(r, outer);
        run_body(r, &n->else_body);
    }
    r->scope = outer;
}

struct value recurse_loop(struct render *r, const struct loop *outer, struct value items)
{
    if (!outer->node->recursive) raise_error(r, "the loop is not recursive: it cannot be called");
    struct scope *scope = r->scope;
    struct writer w = {0}, *out = r->out;
    r->scope = outer->scope;
    r->out = &w;
    run_loop(r, outer->node, items, outer->depth + 1);
    r->out = out;
    r->scope = scope;
    return written(r, &w);
}

/* ---- macros ---- */

static struct value macro_value(struct render *r, const struct node *n)
{
    struct macro *m = render_alloc(r, sizeof(*m));
    *m = (struct macro){n, r->scope, r->escapes};
    return (struct value){.kind = V_MACRO, .macro = m};
}

static void bind_rest(struct render *r, const struct node *n, const struct call *call)
{
    if (n->uses_varargs) {
        struct list *rest = list_new(r, 0);
        for (u32 i = n->args.n; i < call->n; i++) list_add(r, rest, call->items[i]);
        scope_set(r, r->scope, "varargs", v_list(V_TUPLE, rest));
    } else if (call->n > n->args.n) {
        raise_error(r, "macro '%s' takes not more than %u argument(s)", n->name, n->args.n);
    }
    struct value rest = {.kind = V_DICT, .dict = dict_new(r)};
    for (u32 i = 0; i < call->n_named; i++) {
        bool known = false;
        for (u32 k = 0; k < n->args.n; k++)
            known = known || strcmp(n->args.items[k].name, call->named[i].name) == 0;
        if (known) continue;
        if (!n->uses_kwargs)
            raise_error(r, "macro '%s' takes no keyword argument '%s'", n->name, call->named[i].name);
        dict_set(r, rest.dict, v_text(call->named[i].name), call->named[i].value);
    }
    if (n->uses_kwargs) scope_set(r, r->scope, "kwargs", rest);
}

static void bind_param(struct render *r, const struct node *n, u32 at, const struct call *call)
{
    const struct argument *param = &n->args.items[at];
    const struct value *given = at < call->n ? &call->items[at] : NULL;
    for (u32 i = 0; i < call->n_named; i++) {
        if (strcmp(call->named[i].name, param->name) != 0) continue;
        if (given) raise_error(r, "macro '%s' got the argument '%s' twice", n->name, param->name);
        given = &call->named[i].value;
    }
    struct value v = given          ? *given
                     : param->value ? eval(r, param->value)
                                    : undefined(r, "parameter '%s' was not provided", param->name);
    scope_set(r, r->scope, param->name, v);
}

struct value call_macro(struct render *r, const struct macro *m, const struct call *call,
                        const struct value *caller)
{
    const struct node *n = m->node;
    struct scope *outer = r->scope;
    enum flow flow;
    bool escapes = r->escapes;
    if (caller && !n->uses_caller)
        raise_error(r, "macro '%s' was called with a block and does not use caller", n->name);
    r->scope = scope_push(r, m->closure);
    if (n->uses_caller)
        scope_set(r, r->scope, "caller", caller ? *caller : undefined(r, "no caller defined"));
    bind_rest(r, n, call);
    for (u32 i = 0; i < n->args.n; i++) bind_param(r, n, i, call);
    r->escapes = m->escapes;
    struct value v = capture(r, &n->body, &flow);
    r->escapes = escapes;
    v.safe = escapes; /* the caller's word counts */
    r->scope = outer;
    return v;
}

static void print(struct render *r, struct value v)
{
    write_value(r, r->out, r->escapes ? text_escape(r, to_text(r, v)) : v);
}

static void run_call_block(struct render *r, const struct node *n)
{
    struct value caller = macro_value(r, n), callee = eval(r, n->a->a);
    struct call call;
    if (callee.kind == V_UNDEFINED) raise_error(r, "%s", callee.text);
    if (callee.kind != V_MACRO) raise_unsupported(r, "a call block around something that is no macro");
    eval_args(r, &n->a->args, &call);
    print(r, call_macro(r, callee.macro, &call, &caller));
}

/* ---- statements ---- */

static enum flow run_if(struct render *r, const struct node *n)
{
    while (!is_true(eval(r, n->a))) {
        bool is_elif = n->else_body.n == 1 && n->else_body.items[0]->kind == S_IF;
        if (!is_elif) return run_body(r, &n->else_body);
        n = n->else_body.items[0];
    }
    return run_body(r, &n->body);
}

static enum flow run_with(struct render *r, const struct node *n)
{
    struct scope *outer = r->scope, *inner = scope_push(r, outer);
    for (u32 i = 0; i < n->args.n; i++)
        scope_set(r, inner, n->args.items[i].name, eval(r, n->args.items[i].value));
    r->scope = inner;
    enum flow flow = run_body(r, &n->body);
    r->scope = outer;
    return flow;
}

static enum flow run_escape(struct render *r, const struct node *n)
{
    bool outer = r->escapes;
    r->escapes = is_true(eval(r, n->a));
    enum flow flow = run_with(r, n);
    r->escapes = outer;
    return flow;
}

/* A block sees the template's own variables, those around it only when it is scoped. */
static void run_block(struct render *r, const struct node *n)
{
    struct scope *outer = r->scope;
    r->scope = scope_push(r, n->recursive ? outer : r->top);
    run_body(r, &n->body);
    r->scope = outer;
}

static enum flow run(struct render *r, const struct node *n)
{
    enum flow flow = FLOW_ON;
    switch (n->kind) {
    case S_DATA: write_part(r, r->out, n->value, 0, n->value.len); break;
    case S_PRINT: print(r, eval(r, n->a)); break;
    case S_IF: return run_if(r, n);
    case S_FOR: run_loop(r, n, eval(r, n->a), 0); break;
    case S_SET: assign(r, n->target, eval(r, n->a)); break;
    case S_SET_BLOCK: {
        struct value v = capture_scoped(r, &n->body, &flow);
        if (flow == FLOW_ON) assign(r, n->target, eval_filters(r, n->a, v));
        return flow;
    }
    case S_MACRO: scope_set(r, r->scope, n->name, macro_value(r, n)); break;
    case S_CALL: run_call_block(r, n); break;
    case S_FILTER: {
        struct value v = capture_scoped(r, &n->body, &flow);
        if (flow == FLOW_ON) print(r, eval_filters(r, n->a, v));
        return flow;
    }
    case S_WITH:
    case S_SCOPE: return run_with(r, n);
    case S_ESCAPE: return run_escape(r, n);
    case S_BLOCK: run_block(r, n); break;
    case S_LOADER: raise_error(r, "no loader for this environment specified");
    case S_BREAK: return FLOW_BREAK;
    case S_CONTINUE: return FLOW_CONTINUE;
    default: BUG("node %d is no statement", n->kind);
    }
    return FLOW_ON;
}

enum flow run_body(struct render *r, const struct nodes *body)
{
    go_deeper(r);
    for (u32 i = 0; i < body->n; i++) {
        spend(r, 1);
        r->fault.line = body->items[i]->line;
        enum flow flow = run(r, body->items[i]);
        if (flow == FLOW_ON) continue;
        r->depth--;
        return flow;
    }
    r->depth--;
    return FLOW_ON;
}
