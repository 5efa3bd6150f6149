/* A block of tokens in the selection of a step: included once for each set of instructions, as document_rows.h is.
 *
 * Sums are taken in 16 parts whatever a vector is, so the bits are the same. All counts are multiples of 16.
 */
#define LANES (int)(sizeof(Vector) / sizeof(float))
#define AT(place) (*(Unaligned *)(place))
#define FROM(place) (*(const Unaligned *)(place))
#define ALL(value) ((Vector){0} + (value))

/* log(x) of finite x >= 1, relative error below 2e-7: exponent and a polynomial of the mantissa (Cephes' logf). */
static inline __attribute__((always_inline)) Vector NAME(logarithm)(Vector x) {
    typedef int32_t Integers __attribute__((vector_size(sizeof(Vector))));
    const Integers bits = (Integers)x;
    Vector m = (Vector)((bits & 0x7fffff) | 0x3f000000);
    const Integers small = m < 0.70710678118f; /* -1 where it is so */
    const Vector exponent = __builtin_convertvector((bits >> 23) - 126 + small, Vector);
    m = m + (Vector)((Integers)m & small) - 1.0f;
    Vector p = m * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    const Vector square = m * m;
    p = exponent * -2.12194440e-4f + p * m * square - 0.5f * square;
    return exponent * 0.693359375f + (m + p);
}

/* The largest of n values, and the sum of exp(value - largest): NaN where a value is none. */
static Part NAME(part_of)(const float *x, int64_t n) {
    Vector high = FROM(x), parts[16 / LANES] = {0};
    int unlike = 0;
    for (int64_t i = 0; i < n; i += LANES) {
        high = HIGHER(high, FROM(x + i));
        unlike |= UNLIKE(FROM(x + i)); /* NaN is lost in a maximum */
    }
    const float most = HIGHEST(high);
    if (unlike || isinf(most))
        return (Part){most, unlike ? NAN : 1};
    for (int64_t i = 0; i < n; i += 16)
        for (int part = 0; part < 16 / LANES; part++)
            parts[part] += EXP(FROM(x + i + part * LANES) - most);
    return (Part){most, TOTAL(parts)};
}

/* y [n] = log of the sum over documents of exp(x + shift); rows of x are `stride` apart, shifts `step`. */
static void NAME(marginal)(const float *x, int64_t stride, const float *shifts, int64_t step, int64_t docs, int64_t n, float *y) {
    for (int64_t i = 0; i < n; i += LANES, x += LANES, y += LANES) {
        Vector high = ALL(-INFINITY), sum = {0};
        for (int64_t d = 0; d < docs; d++)
            high = HIGHER(high, FROM(x + d * stride) + shifts[d * step]);
        const Vector peak = HIGHER(high, ALL(-3e38f)); /* -inf less -inf is no number */
        for (int64_t d = 0; d < docs && docs > 1; d++)
            sum += EXP(FROM(x + d * stride) + shifts[d * step] - peak);
        AT(y) = high;
        if (docs > 1)
            AT(y) = peak + NAME(logarithm)(HIGHER(sum, ALL(1))) + (high - peak);
    }
}

#undef LANES
#undef AT
#undef FROM
#undef ALL
