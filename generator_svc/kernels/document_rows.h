/* Rows of one head that attend to their document: included once for each set of instructions.
 *
 * by_8.h or by_16.h say what a vector is, the includer how many of them a product takes at a time (VECTORS). All sums are
 * taken in one order whatever a vector is: over inputs or tokens one after the other, those of exponentials in 16 parts.
 * So the bits are the same.
 */
#define LANES (int)(sizeof(Vector) / sizeof(float))
#define AT(place) (*(Unaligned *)(place))
#define EACH(i, n) _Pragma("GCC unroll 8") for (int i = 0; i < n; i++)
#define FROM(place) (*(const Unaligned *)(place))

/* c [ROWS, vectors] = a [ROWS, n] @ b [n, vectors]; rows of a are `along` apart, those of b and c `columns`. */
static inline __attribute__((always_inline)) void NAME(times)(const float *a, int64_t along, int64_t n, const float *b,
                                                              int64_t columns, float *c, const int vectors) {
    Vector sums[ROWS][VECTORS];
    EACH(r, ROWS) EACH(v, vectors) sums[r][v] = (Vector){0};
    for (int64_t i = 0; i < n; i++, a++, b += columns) {
        Vector right[VECTORS];
        EACH(v, vectors) right[v] = FROM(b + v * LANES);
        EACH(r, ROWS) EACH(v, vectors) sums[r][v] += a[r * along] * right[v];
    }
    EACH(r, ROWS) EACH(v, vectors) __asm__("" : "+v"(sums[r][v])); /* in registers: see vnni.c */
    EACH(r, ROWS) EACH(v, vectors) AT(c + r * columns + v * LANES) = sums[r][v];
}

static __attribute__((noinline)) void NAME(times_many)(const float *a, int64_t along, int64_t n, const float *b,
                                                       int64_t columns, float *c) {
    NAME(times)(a, along, n, b, columns, c, VECTORS);
}

static __attribute__((noinline)) void NAME(times_one)(const float *a, int64_t along, int64_t n, const float *b,
                                                      int64_t columns, float *c) {
    NAME(times)(a, along, n, b, columns, c, 1);
}

static void NAME(product)(const float *a, int64_t along, int64_t n, const float *b, int64_t columns, float *c) {
    int64_t first = 0;
    for (; first + VECTORS * LANES <= columns; first += VECTORS * LANES)
        NAME(times_many)(a, along, n, b + first, columns, c + first);
    for (; first < columns; first += LANES)
        NAME(times_one)(a, along, n, b + first, columns, c + first);
}

/* scores [n] -> exp(scores - their maximum), and 1 / the sum of these; NaN where a score is none. n: a multiple of 16. */
static float NAME(softmax)(float *scores, int64_t n) {
    Vector high = FROM(scores), parts[16 / LANES] = {0};
    int unlike = 0;
    for (int64_t t = 0; t < n; t += LANES) {
        high = HIGHER(high, FROM(scores + t));
        unlike |= UNLIKE(FROM(scores + t));
    }
    const float most = HIGHEST(high);
    for (int64_t t = 0; t < n; t += 16)
        for (int part = 0; part < 16 / LANES; part++) {
            float *place = scores + t + part * LANES;
            AT(place) = EXP(FROM(place) - most);
            parts[part] += FROM(place);
        }
    return unlike ? NAN : 1.0f / TOTAL(parts);
}

/* Some rows of a head, whose keys and values are laid out in `room`. */
static void NAME(head_rows)(const Head *h, int64_t first, int64_t rows) {
    const int64_t dim = h->dim, n16 = up16(h->tokens), dim16 = up16(dim);
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t d = 0; d < dim; d++)
            h->query[r * dim + d] = r < rows ? h->scale * h->qkv[(first + r) * h->width + d] : 0;
    NAME(product)(h->query, dim, dim, h->keys, n16, h->scores);
    float shares[ROWS];
    for (int64_t r = 0; r < rows; r++) {
        float *scores = h->scores + r * n16;
        for (int64_t t = 0; h->bias && t < h->tokens; t++)
            scores[t] += h->bias[(first + r) * h->longest + t];
        for (int64_t t = h->tokens; t < n16; t++)
            scores[t] = -INFINITY;
        shares[r] = NAME(softmax)(scores, n16);
    }
    NAME(product)(h->scores, n16, h->tokens, h->values, dim16, h->sums);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t d = 0; d < dim; d++)
            h->y[(first + r) * h->inner + d] = shares[r] * h->sums[r * dim16 + d];
}

#undef LANES
#undef AT
#undef FROM
#undef EACH
