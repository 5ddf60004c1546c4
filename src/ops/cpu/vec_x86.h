/* Products of pairs of bf16, and the control word, for the x86 vec_*.h. */
#ifdef __AVX512BF16__
static inline vf vf_dot(vf acc, vi a, vi b)
{
    return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
}
#else
/* What vdpbf16ps does: the second of each pair first, each product rounded with its sum, denormals taken as 0
 * (which the control word below arranges). */
static inline vf vf_dot(vf acc, vi a, vi b)
{
    return vf_fma(vf_low(a), vf_low(b), vf_fma(vf_high(a), vf_high(b), acc));
}
#endif
/* Around products of bf16: denormals are 0, in and out. */
static inline u32 vec_flush_begin(void)
{
    u32 old = _mm_getcsr();
    _mm_setcsr(old | 0x8040);
    return old;
}
static inline void vec_flush_end(u32 old)
{
    _mm_setcsr(old);
}
static inline void vec_prefetch(const void *p)
{
    _mm_prefetch((const char *)p, _MM_HINT_T1);
}

/* Sixteen codes of quantised weights as f32. F4: twice the value. */
static inline __m128i codes_of(const u8 *p, int high)
{
    __m128i bytes = _mm_loadu_si128((const void *)p);
    return _mm_and_si128(high ? _mm_srli_epi16(bytes, 4) : bytes, _mm_set1_epi8(15));
}
static inline __m128i doubled_f4(__m128i codes)
{
    return _mm_shuffle_epi8(_mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12), codes);
}
