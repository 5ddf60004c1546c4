/* template: the parts of the chat template engine. Private to this room; each part has a file template_PART.c.
 *
 *   source -> lex -> tokens -> parse -> tree of nodes (once a template, in its arena)
 *   tree + context -> run -> text with origins (a render's own arena, with limits)
 *
 * Errors leave through struct fault (longjmp): everything that is allocated between lies in one arena. */
#ifndef TEXT_TEMPLATE_H
#define TEXT_TEMPLATE_H

#include "mpiserve/text.h"

#include <setjmp.h>

struct fault {
    jmp_buf back;
    struct error *err;
    int line; /* of the template's source, for the error */
    int code; /* 0: none was raised */
};
_Noreturn void fault_raise(struct fault *f, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* ---- values -----------------------------------------------------------------------------------------------------
 * Values do not change once made, but for namespaces, loops and generators, which are shared by pointer. */
enum value_kind {
    V_ABSENT, /* an argument that was not given */
    V_UNDEFINED,
    V_NONE,
    V_BOOL,
    V_INT,
    V_BIG, /* an integer beyond 64 bits */
    V_REAL,
    V_TEXT,
    V_BYTES, /* what encode() gives */
    V_LIST,
    V_TUPLE,
    V_DICT,
    V_RANGE,
    V_VIEW,      /* keys(), values(), items() of a dict */
    V_GENERATOR, /* what map(), select() ... give: can be walked once */
    V_NAMESPACE,
    V_MACRO,
    V_LOOP,
    V_FUNCTION,
    V_METHOD,
    V_CYCLER,
    V_JOINER,
};
/* Where a text's bytes came from. */
enum origin { FROM_TEMPLATE, FROM_CONTENT, FROM_BOTH };

struct value {
    u8 kind;
    u8 origin; /* V_TEXT */
    bool safe; /* V_TEXT: went through `safe` or `escape` */
    u32 len;   /* V_TEXT, V_BYTES: bytes */
    union {
        bool b;
        i64 i;
        double d;
        struct big *big;
        const char *text;  /* V_TEXT, V_BYTES; V_UNDEFINED: why; V_METHOD: its name */
        struct list *list; /* V_LIST, V_TUPLE, V_VIEW, V_GENERATOR */
        struct dict *dict; /* V_DICT, V_NAMESPACE */
        struct range *range;
        struct macro *macro;
        struct loop *loop;
        const struct function *function;
        struct helper *helper; /* V_CYCLER, V_JOINER */
    };
    const u8 *marks; /* V_TEXT from both: an enum origin for each byte. V_VIEW: its name */
};
struct list {
    struct value *items;
    u32 n, cap;
    bool walked; /* V_GENERATOR */
    bool group;  /* V_TUPLE of groupby: its members have the names grouper and list */
};
struct helper { /* cycler(), joiner() */
    struct list *items;
    u32 at;
    struct value by;
};
struct pair {
    struct value key, value;
};
struct dict {
    struct pair *pairs;
    u32 n, cap;
};
struct range {
    i64 start, stop, step, n;
};
struct scope {
    struct scope *parent;
    struct binding {
        const char *name;
        struct value value;
    } * items;
    u32 n, cap;
};
struct macro {
    const struct node *node;
    struct scope *closure;
    bool escapes; /* was defined where autoescape is on */
};
struct loop {
    const struct node *node;
    struct scope *scope; /* where the for statement stands */
    const struct list *list;
    u32 at;
    int depth;
    struct value changed; /* the arguments of the last changed() */
};

/* Arguments of a call: as written, values computed. */
struct call {
    struct value *items;
    u32 n;
    struct binding *named;
    u32 n_named;
};
/* A row of the tables of filters, tests, methods and functions. params: "a,b,c", the first `required` of them without
 * default; "*": whatever is given. fn: NULL where the sandbox forbids it; in is what stands before | or is or the dot; arg[i] is V_ABSENT when not given. */
struct render;
typedef struct value function_fn(struct render *r, struct value in, const struct call *call,
                                 const struct value *arg);
struct function {
    const char *name;
    function_fn *fn;
    const char *params;
    int required;
};
enum { PARAMS_MAX = 8 };

extern const struct function text_methods[], more_text_methods[], number_methods[], real_methods[],
    bytes_methods[];
extern const struct function list_filters[], text_filters[]; /* a row without name ends them */
const struct function *filter_find(const char *name);        /* NULL: none */
const struct function *test_find(const char *name);
const struct function *global_find(const char *name);
const struct function *method_find(enum value_kind of, const char *name);
/* Known to Jinja or Python, and not offered here. */
bool filter_is_refused(const char *name);
bool method_is_refused(const char *name);
bool global_is_refused(const char *name);

/* ---- the tree --------------------------------------------------------------------------------------------------- */
enum node_kind {
    N_CONST, /* value */
    N_NAME,
    N_LIST, /* items */
    N_TUPLE,
    N_DICT,   /* items: key, value, key, value ... */
    N_ATTR,   /* a.name */
    N_ITEM,   /* a[b] */
    N_SLICE,  /* a[items[0]:items[1]:items[2]], NULL where not given */
    N_CALL,   /* a(args) */
    N_FILTER, /* a|function(args); a NULL: of a block */
    N_TEST,   /* a is function(args) */
    N_NOT,
    N_NEG,
    N_POS,
    N_AND,
    N_OR,
    N_BINARY,  /* a op b */
    N_CONCAT,  /* items */
    N_COMPARE, /* items[0] ops[0] items[1] ops[1] ... */
    N_COND,    /* a if b else c */
    S_DATA,
    S_PRINT,     /* a */
    S_IF,        /* a: body, else_body (elif: one S_IF in it) */
    S_FOR,       /* for target in a if b: body, else_body */
    S_SET,       /* target = a */
    S_SET_BLOCK, /* target = body, through the filters a */
    S_MACRO,     /* name, params, body */
    S_CALL,      /* a is the call; params and body of the caller */
    S_FILTER,    /* a: filters; body */
    S_WITH,      /* targets in params, body */
    S_SCOPE,     /* body */
    S_BREAK,
    S_CONTINUE,
    S_ESCAPE, /* autoescape a: body */
    S_BLOCK,  /* name: body; recursive: scoped */
    S_LOADER, /* include and its like: an error when it is reached */
};
enum op {
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_FLOOR,
    OP_MOD,
    OP_POW,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_LE,
    OP_GT,
    OP_GE,
    OP_IN,
    OP_NOT_IN
};

struct nodes {
    struct node **items;
    u32 n, cap;
};
struct argument {
    const char *name; /* NULL: by position */
    struct node *value;
    u8 stars; /* of a call: 1 for *value, 2 for **value */
};
struct arguments {
    struct argument *items;
    u32 n, cap;
};
struct node {
    u8 kind;
    u8 op;
    bool recursive, uses_varargs, uses_kwargs, uses_caller;
    int line;
    const char *name;
    struct value value;
    struct node *a, *b, *c, *target;
    struct nodes items, body, else_body;
    u8 *ops;
    struct arguments args; /* of a call; parameters of a macro (value: the default, NULL: none) */
    const struct function *function;
};

/* ---- lex --------------------------------------------------------------------------------------------------------- */
enum token_kind {
    T_END,
    T_DATA,
    T_PRINT_BEGIN,
    T_PRINT_END,
    T_BLOCK_BEGIN,
    T_BLOCK_END,
    T_NAME,
    T_TEXT,
    T_INT,
    T_REAL,
    T_OP
};
struct lexeme {
    enum token_kind kind;
    int line;
    const char *text; /* NUL-terminated; T_TEXT: without quotes and escapes */
    u32 len;
    i64 i;
    double d;
};
struct lexer {
    struct fault *fault;
    struct arena *arena;
    const char *src;
    size_t len, at;
    int line;
    bool line_starts; /* the last tag ended with its line */
    char open[64];    /* brackets inside of a tag */
    int n_open;
    struct lexeme *items;
    size_t n, cap;
};
/* Tokens of the source, T_END last. */
void lex(struct lexer *l, const char *source, size_t len);
/* The text of a string literal's inside, in l's arena. */
const char *lex_literal(struct lexer *l, const char *inside, size_t len, u32 *out_len);

/* ---- parse --------------------------------------------------------------------------------------------------------- */
struct parser {
    struct fault *fault;
    struct arena *arena;
    const struct lexeme *t; /* the current token */
    int depth, loops;
    struct node *macro; /* the innermost one, to learn which implicit names it uses */
};
struct nodes parse_template(struct parser *p);
struct node *parse_expression(struct parser *p, bool with_condition);
struct node *parse_tuple(struct parser *p, bool with_condition, const char *end_name);
struct node *parse_unary(struct parser *p, bool with_filter);
struct node *parse_filters(struct parser *p, struct node *of, bool start_inline);
void parse_call_args(struct parser *p, struct arguments *args);
struct node *parse_target(struct parser *p, bool with_namespace);
struct node *node_new(struct parser *p, enum node_kind kind);
void nodes_add(struct parser *p, struct nodes *list, struct node *n);
struct argument *arguments_add(struct parser *p, struct arguments *args, const char *name,
                               struct node *value);
void next(struct parser *p);
bool is_op(const struct lexeme *t, const char *op);
bool is_name(const struct lexeme *t, const char *name);
bool skip_op(struct parser *p, const char *op);
bool skip_name(struct parser *p, const char *name);
void expect_op(struct parser *p, const char *op);
const char *expect_name(struct parser *p);
_Noreturn void unexpected(struct parser *p, const char *wanted);
void deeper(struct parser *p); /* counts nesting: every deeper() has its p->depth-- */

/* ---- run ----------------------------------------------------------------------------------------------------------- */
struct writer { /* a text in the making */
    char *data;
    u8 *marks;
    size_t len, cap;
    u8 origin;
    bool safe;
};
struct render {
    struct fault fault;
    struct arena arena;
    u64 steps;
    size_t memory;
    int depth;
    i64 now;
    struct dict *context;
    struct value final; /* the text that is to be continued */
    struct scope *scope;
    struct scope *top; /* the template's own */
    struct writer *out;
    bool escapes; /* autoescape is on */
    bool refused; /* raise_exception() was called */
};
_Noreturn void raise_error(struct render *r, const char *fmt, ...) PRINTF_LIKE(2, 3);
_Noreturn void raise_unsupported(struct render *r, const char *what);
void *render_alloc(struct render *r, size_t size); /* counts, zeroes */
void spend(struct render *r, u64 steps);
void go_deeper(struct render *r); /* before a recursion; every one has its r->depth-- */

enum flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE };
enum flow run_body(struct render *r, const struct nodes *body);
struct value eval(struct render *r, const struct node *n);
void eval_args(struct render *r, const struct arguments *args, struct call *call);
struct value eval_filters(struct render *r, const struct node *n, struct value in); /* n NULL: in itself */
struct value call_value(struct render *r, struct value callee, const struct call *call);
struct value call_function(struct render *r, const struct function *f, struct value in,
                           const struct call *call);
struct value call_macro(struct render *r, const struct macro *m, const struct call *call,
                        const struct value *caller);
struct value recurse_loop(struct render *r, const struct loop *outer, struct value items);
struct value get_attr(struct render *r, struct value of, const char *name);
struct value get_item(struct render *r, struct value of, struct value key);
struct value get_attribute(struct render *r, struct value of,
                           const char *name); /* V_ABSENT: none; items do not count */
struct value get_slice(struct render *r, struct value of, const struct value at[3]);
struct value binary(struct render *r, enum op op, struct value a, struct value b);
bool compare(struct render *r, enum op op, struct value a, struct value b);
void assign(struct render *r, const struct node *target, struct value v);
void scope_set(struct render *r, struct scope *s, const char *name, struct value v);
struct scope *scope_push(struct render *r, struct scope *parent);

void build_context(struct render *r, const struct json *context, unsigned flags);
void cut_at_marker(struct render *r, struct writer *w);

/* ---- values: making, asking ---- */
struct value undefined(struct render *r, const char *fmt, ...) PRINTF_LIKE(2, 3);
struct value v_bool(bool b);
struct value v_int(i64 i);
struct value v_real(double d);
struct value v_none(void);
struct value v_text(const char *s); /* of the template; s stays where it is */
struct value v_list(enum value_kind kind, struct list *list);
struct list *list_new(struct render *r, u32 cap);
void list_add(struct render *r, struct list *l, struct value v);
struct dict *dict_new(struct render *r);
void dict_set(struct render *r, struct dict *d, struct value key, struct value v);
const struct value *dict_get(struct render *r, const struct dict *d, struct value key); /* NULL: none */
const struct value *dict_get_name(struct render *r, const struct dict *d, const char *name, size_t len);
const char *type_name(struct value v); /* Python's */
bool is_true(struct value v);
bool is_number(struct value v);      /* int, bool, real */
bool as_int(struct value v, i64 *i); /* int, bool */
double as_real(struct value v);      /* of V_BIG: see big_real */
bool is_text(struct value v, const char *s);
bool equal(struct render *r, struct value a, struct value b);
/* -1, 0, 1, or 2 when one is NaN; an error when they have none. op: for the error. */
int order(struct render *r, struct value a, struct value b, const char *op);
bool contains(struct render *r, struct value in, struct value v);
const struct list *walk(struct render *r, struct value v); /* what iterating gives; error when it cannot */
i64 length(struct render *r, struct value v);
bool is_hashable(struct render *r, struct value v);

/* ---- integers beyond 64 bits ---- */
struct value big_from_digits(struct render *r, const char *digits);
const char *big_digits(struct render *r, struct value v);
double big_real(struct render *r, struct value v);
struct value big_binary(struct render *r, enum op op, struct value a, struct value b); /* integers, bools */
int big_order(struct render *r, struct value a, struct value b);

/* ---- formatting ---- */
struct value format_percent(struct render *r, struct value format, struct value args);
/* "{}".format(...): mapping, when it is not NULL, holds the names (format_map). */
struct value format_braces(struct render *r, struct value format, const struct call *call,
                           const struct value *mapping);

/* ---- texts ---- */
void write_text(struct render *r, struct writer *w, const char *s, size_t len, enum origin origin);
void write_part(struct render *r, struct writer *w, struct value text, size_t from, size_t len);
void write_value(struct render *r, struct writer *w, struct value v); /* as print shows it */
void write_repr(struct render *r, struct writer *w, struct value v);
void write_json(struct render *r, struct value v, const struct value *arg,
                struct writer *w);       /* arg: as in tojson() */
int format_real(double d, char out[40]); /* shortest that reads back, as Python */
struct value written(struct render *r, struct writer *w);
struct value to_text(struct render *r, struct value v);
struct value part(struct value text, size_t from, size_t len);
enum origin origin_at(struct value text, size_t at);
i64 count_chars(struct value text);
size_t char_offset(struct value text, i64 n); /* byte offset of character n <= count */
bool is_py_space(u32 cp);
const char *find_text(struct value in, size_t from, struct value what); /* NULL: none */
struct value text_upper(struct render *r, struct value v);
struct value text_lower(struct render *r, struct value v);
struct value text_title(struct render *r, struct value v, bool filter);
struct value text_capitalize(struct render *r, struct value v);
struct value text_swapcase(struct render *r, struct value v);
struct value text_casefold(struct render *r, struct value v);
struct value text_strip(struct render *r, struct value v, const struct value *chars, bool left, bool right);
struct value text_replace(struct render *r, struct value v, struct value from, struct value to, i64 count);
struct value text_escape(struct render *r, struct value v);
bool text_is_case(struct value v, bool upper);
struct value attribute_path(struct render *r, struct value of, struct value path,
                            const struct value *otherwise);

struct chat_template {
    struct arena arena;
    struct nodes body;
    const char *source;
    size_t source_len;
};
#endif
