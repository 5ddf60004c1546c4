/* Integers beyond 64 bits, as Python has them: sign and limbs of nine decimal digits, the lowest first. Made rarely: a result
 * that fits 64 bits is an ordinary integer again. */
#include "text/template.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LIMB = 1000 * 1000 * 1000,
    LIMB_DIGITS = 9,
    LIMBS_MAX = 4300 / LIMB_DIGITS + 1 /* Python prints no more */
};

struct big {
    bool negative;
    u32 n; /* no limb at the end is 0 */
    u32 limb[];
};

static struct big *new_big(struct render *r, u32 n)
{
    if (n > LIMBS_MAX + 1) raise_unsupported(r, "an integer of more than 4300 digits");
    spend(r, 1 + n);
    struct big *b = render_alloc(r, sizeof(*b) + (n + 1) * sizeof(*b->limb));
    b->n = n;
    return b;
}

/* v, which is an integer or a bool, as limbs. */
static struct big *limbs_of(struct render *r, struct value v)
{
    if (v.kind == V_BIG) return v.big;
    i64 i = v.kind == V_BOOL ? v.b : v.i;
    u64 rest = i < 0 ? 0 - (u64)i : (u64)i;
    struct big *b = new_big(r, 3);
    b->negative = i < 0;
    for (b->n = 0; rest; rest /= LIMB) b->limb[b->n++] = (u32)(rest % LIMB);
    return b;
}

static struct value small_or_big(struct render *r, struct big *b)
{
    while (b->n && !b->limb[b->n - 1]) b->n--;
    if (b->n > LIMBS_MAX) raise_unsupported(r, "an integer of more than 4300 digits");
    __int128 all = 0;
    for (u32 i = b->n; b->n <= 3 && i > 0; i--) all = all * LIMB + b->limb[i - 1];
    if (b->negative) all = -all;
    if (b->n <= 3 && all >= INT64_MIN && all <= INT64_MAX) return v_int((i64)all);
    return (struct value){.kind = V_BIG, .big = b};
}

struct value big_from_digits(struct render *r, const char *digits)
{
    bool negative = digits[0] == '-';
    digits += negative;
    size_t len = strlen(digits);
    struct big *b = new_big(r, (u32)(MIN_OF(len, (size_t)100000) / LIMB_DIGITS + 1));
    b->negative = negative;
    for (u32 i = 0; len; i++) {
        size_t n = MIN_OF(len, (size_t)LIMB_DIGITS);
        char limb[LIMB_DIGITS + 1] = "";
        memcpy(limb, digits + len - n, n);
        b->limb[i] = (u32)strtoul(limb, NULL, 10);
        len -= n;
    }
    return small_or_big(r, b);
}

/* NUL-terminated, in the render's memory. */
const char *big_digits(struct render *r, struct value v)
{
    const struct big *b = v.big;
    char *out = render_alloc(r, (size_t)b->n * LIMB_DIGITS + 2), *at = out;
    if (b->negative) *at++ = '-';
    at += sprintf(at, "%u", b->limb[b->n - 1]);
    for (u32 i = b->n - 1; i > 0; i--) at += sprintf(at, "%09u", b->limb[i - 1]);
    return out;
}

double big_real(struct render *r, struct value v)
{
    return strtod(big_digits(r, v), NULL);
}

/* ---- without signs ---- */

static int compare_limbs(const struct big *a, const struct big *b)
{
    if (a->n != b->n) return a->n < b->n ? -1 : 1;
    for (u32 i = a->n; i > 0; i--)
        if (a->limb[i - 1] != b->limb[i - 1]) return a->limb[i - 1] < b->limb[i - 1] ? -1 : 1;
    return 0;
}

static struct big *add_limbs(struct render *r, const struct big *a, const struct big *b)
{
    struct big *sum = new_big(r, MAX_OF(a->n, b->n) + 1);
    u32 carry = 0;
    for (u32 i = 0; i < sum->n; i++) {
        u32 limb = (i < a->n ? a->limb[i] : 0) + (i < b->n ? b->limb[i] : 0) + carry;
        carry = limb >= LIMB;
        sum->limb[i] = limb - (carry ? LIMB : 0);
    }
    return sum;
}

/* a >= b */
static struct big *subtract_limbs(struct render *r, const struct big *a, const struct big *b)
{
    struct big *rest = new_big(r, a->n);
    bool borrow = false;
    for (u32 i = 0; i < a->n; i++) {
        i64 limb = (i64)a->limb[i] - (i < b->n ? b->limb[i] : 0) - borrow;
        borrow = limb < 0;
        rest->limb[i] = (u32)(limb + (borrow ? LIMB : 0));
    }
    while (rest->n && !rest->limb[rest->n - 1]) rest->n--;
    return rest;
}

static struct big *multiply_limbs(struct render *r, const struct big *a, const struct big *b)
{
    struct big *product = new_big(r, a->n + b->n);
    spend(r, (u64)a->n * b->n / 8);
    for (u32 i = 0; i < a->n; i++) {
        u64 carry = 0;
        for (u32 k = 0; k < b->n || carry; k++) {
            carry += product->limb[i + k] + (k < b->n ? (u64)a->limb[i] * b->limb[k] : 0);
            product->limb[i + k] = (u32)(carry % LIMB);
            carry /= LIMB;
        }
    }
    while (product->n && !product->limb[product->n - 1]) product->n--;
    return product;
}

/* rest = rest * LIMB + limb */
static void shift_in(struct big *rest, u32 limb)
{
    memmove(rest->limb + 1, rest->limb, rest->n * sizeof(*rest->limb));
    rest->limb[0] = limb;
    rest->n++;
    while (rest->n && !rest->limb[rest->n - 1]) rest->n--;
}

/* How often b goes into rest, which is less than LIMB times; rest keeps what is left. */
static u32 take_out(struct big *rest, const struct big *b)
{
    u32 low = 0, high = LIMB - 1;
    while (low < high) { /* the largest q with q * b <= rest */
        u32 q = low + (high - low + 1) / 2;
        u64 carry = 0;
        int order = 0; /* of q * b and rest, by the highest limb that differs */
        for (u32 i = 0; i < MAX_OF(b->n, rest->n) || carry; i++) {
            carry += i < b->n ? (u64)q * b->limb[i] : 0;
            u32 limb = (u32)(carry % LIMB), other = i < rest->n ? rest->limb[i] : 0;
            if (limb != other) order = limb < other ? -1 : 1;
            carry /= LIMB;
        }
        if (order <= 0) {
            low = q;
        } else {
            high = q - 1;
        }
    }
    i64 carry = 0;
    for (u32 i = 0; i < rest->n; i++) {
        i64 limb = (i64)rest->limb[i] - (i < b->n ? (i64)((u64)low * b->limb[i] % LIMB) : 0) + carry;
        carry = -(i < b->n ? (i64)((u64)low * b->limb[i] / LIMB) : 0);
        if (limb < 0) {
            i64 borrow = (-limb + LIMB - 1) / LIMB;
            limb += borrow * LIMB;
            carry -= borrow;
        }
        rest->limb[i] = (u32)limb;
    }
    while (rest->n && !rest->limb[rest->n - 1]) rest->n--;
    return low;
}

/* Rounded towards 0. */
static struct big *divide_limbs(struct render *r, const struct big *a, const struct big *b, struct big **rest)
{
    struct big *quotient = new_big(r, a->n);
    *rest = new_big(r, MAX_OF(a->n, b->n) + 1);
    (*rest)->n = 0;
    spend(r, (u64)a->n * b->n * 4);
    for (u32 i = a->n; i > 0; i--) {
        shift_in(*rest, a->limb[i - 1]);
        quotient->limb[i - 1] = take_out(*rest, b);
    }
    while (quotient->n && !quotient->limb[quotient->n - 1]) quotient->n--;
    return quotient;
}

/* ---- with signs ---- */

static struct value sum_of(struct render *r, const struct big *a, const struct big *b, bool b_negative)
{
    struct big *out;
    if (a->negative == b_negative) {
        out = add_limbs(r, a, b);
        out->negative = a->negative;
    } else if (compare_limbs(a, b) >= 0) {
        out = subtract_limbs(r, a, b);
        out->negative = a->negative;
    } else {
        out = subtract_limbs(r, b, a);
        out->negative = b_negative;
    }
    return small_or_big(r, out);
}

/* Rounded towards minus infinity. */
static struct value division(struct render *r, enum op op, struct big *a, struct big *b)
{
    static const struct value one = {.kind = V_INT, .i = 1};
    struct big *rest, *quotient = divide_limbs(r, a, b, &rest);
    bool differ = a->negative != b->negative && rest->n;
    quotient->negative = a->negative != b->negative;
    if (op == OP_FLOOR)
        return differ ? binary(r, OP_SUB, small_or_big(r, quotient), one) : small_or_big(r, quotient);
    if (differ) rest = subtract_limbs(r, b, rest);
    rest->negative = b->negative;
    return small_or_big(r, rest);
}

static struct value ten_to(struct render *r, i64 n)
{
    return binary(r, OP_POW, v_int(10), v_int(n));
}

/* True division, rounded once: 40 digits of the quotient, and one more when there is a rest. */
static struct value quotient(struct render *r, struct value left, struct value right)
{
    i64 digits_left = (i64)limbs_of(r, left)->n * LIMB_DIGITS,
        digits_right = (i64)limbs_of(r, right)->n * LIMB_DIGITS;
    i64 shift = MAX_OF(40 + digits_right - digits_left, (i64)0);
    bool negative = limbs_of(r, left)->negative != limbs_of(r, right)->negative;
    if (limbs_of(r, left)->negative) left = binary(r, OP_SUB, v_int(0), left);
    if (limbs_of(r, right)->negative) right = binary(r, OP_SUB, v_int(0), right);
    struct value scaled = binary(r, OP_MUL, left, ten_to(r, shift));
    struct value whole = binary(r, OP_FLOOR, scaled, right);
    bool rest = is_true(binary(r, OP_MOD, scaled, right));
    struct writer w = {0};
    char exponent[32];
    write_repr(r, &w, whole);
    snprintf(exponent, sizeof(exponent), "%se-%lld", rest ? "1" : "", (long long)shift + rest);
    write_text(r, &w, exponent, strlen(exponent), FROM_TEMPLATE);
    double d = strtod(written(r, &w).text, NULL);
    if (isinf(d)) raise_error(r, "integer division result too large for a float");
    return v_real(negative ? -d : d);
}

static struct value power(struct render *r, struct value a, struct value b)
{
    i64 times;
    struct value result = v_int(1);
    if (!as_int(b, &times)) raise_unsupported(r, "an integer of more than 4300 digits");
    if (times < 0) return binary(r, OP_POW, v_real(as_real(a)), v_real((double)times));
    for (; times; times >>= 1) {
        if (times & 1) result = big_binary(r, OP_MUL, result, a);
        if (times > 1) a = big_binary(r, OP_MUL, a, a);
    }
    return result;
}

struct value big_binary(struct render *r, enum op op, struct value left, struct value right)
{
    struct big *a = limbs_of(r, left), *b = limbs_of(r, right), *product;
    if ((op == OP_DIV || op == OP_FLOOR || op == OP_MOD) && b->n == 0) raise_error(r, "division by zero");
    switch (op) {
    case OP_ADD: return sum_of(r, a, b, b->negative);
    case OP_SUB: return sum_of(r, a, b, !b->negative);
    case OP_MUL:
        product = multiply_limbs(r, a, b);
        product->negative = a->negative != b->negative;
        return small_or_big(r, product);
    case OP_DIV: return quotient(r, left, right);
    case OP_POW: return power(r, left, right);
    default: return division(r, op, a, b);
    }
}

/* A real as large as the other one is whole: its digits are compared. */
static struct value whole_of(struct render *r, struct value v)
{
    char digits[400];
    if (v.kind != V_REAL) return v;
    snprintf(digits, sizeof(digits), "%.0f", v.d);
    return big_from_digits(r, digits);
}

/* -1, 0, 1; 2 when one is NaN. At least one is V_BIG. */
int big_order(struct render *r, struct value a, struct value b)
{
    if (a.kind == V_REAL && !isfinite(a.d)) return isnan(a.d) ? 2 : a.d < 0 ? -1 : 1;
    if (b.kind == V_REAL && !isfinite(b.d)) return isnan(b.d) ? 2 : b.d < 0 ? 1 : -1;
    a = whole_of(r, a);
    b = whole_of(r, b);
    if (a.kind != V_BIG) return b.big->negative ? 1 : -1;
    if (b.kind != V_BIG) return a.big->negative ? -1 : 1;
    if (a.big->negative != b.big->negative) return a.big->negative ? -1 : 1;
    return a.big->negative ? compare_limbs(b.big, a.big) : compare_limbs(a.big, b.big);
}
