/* The sums of linear_int8.c with AVX-512 VNNI: one instruction adds 64 products to 16 sums.
 *
 * The integers are the same, and groups are added in the same order: so are the results, to the last bit.
 */
#if defined(__x86_64__)

#include "product.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

#include "vector16.h"

#include <string.h>

#define ROWS 6 /* with four panels: 24 of the 32 registers hold sums */
#define LEAST_AHEAD 3 /* rows */
#define EACH(i, n) _Pragma("GCC unroll 8") for (int i = 0; i < n; i++)

/* Rows `row` and the following by panels `first` and the following: their weights, how far apart those of two panels are,
 * and those of a panel for four inputs and for the next four. `ahead`: what to bring near during a group, before it is
 * needed, `share` bytes for each four inputs. */
typedef struct {
    int64_t first, row, apart, along, share;
    const int8_t *weights, *ahead;
} Tile;

/* Adds group g of R rows and P panels to totals [R][P], which the first one sets: step * sum of the integers' products +
 * minimum * sum of the weights. A function for each R and P, so that the sums stay in registers: GCC 12 puts them all into
 * memory, in every turn of the loop, unless the empty instruction behind it asks for them in registers. */
#define GROUP_OF(R, P)                                                                                                \
    static __attribute__((noinline)) void group_of_##R##_##P(const Product *p, const Tile *t, int64_t g, __m512 *totals) { \
        const int64_t width = p->width, group = p->group, left = width - g * group, row = t->row, first = t->first;  \
        const int64_t apart = t->apart, along = t->along, share = t->ahead ? t->share : 0;                            \
        const uint8_t *q = p->q + row * width + g * group, *end = q + (left < group ? left : group);                  \
        const int8_t *w = t->weights + g * (group / 4) * along, *ahead = t->ahead;                                    \
        const __mmask16 seen = g ? 0xffff : 0;                                                                        \
        __m512i sums[R][P];                                                                                           \
        EACH(r, R) EACH(n, P) sums[r][n] = _mm512_setzero_si512();                                                    \
        for (; q < end; q += 4, w += along) {                                                                         \
            __m512i weights[P];                                                                                       \
            EACH(n, P) weights[n] = _mm512_loadu_si512(w + n * apart);                                                \
            for (const int8_t *stop = ahead + share; ahead < stop; ahead += LINE)                                     \
                _mm_prefetch(ahead, _MM_HINT_T1);                                                                     \
            EACH(r, R) {                                                                                              \
                int32_t four;                                                                                         \
                memcpy(&four, q + r * width, sizeof four);                                                            \
                const __m512i inputs = _mm512_set1_epi32(four);                                                       \
                EACH(n, P) sums[r][n] = _mm512_dpbusd_epi32(sums[r][n], inputs, weights[n]);                          \
            }                                                                                                         \
        }                                                                                                             \
        EACH(r, R) EACH(n, P) __asm__("" : "+v"(sums[r][n]));                                                         \
        const float *steps = p->step + row * p->groups + g, *minima = p->minimum + row * p->groups + g;               \
        const int64_t next = p->groups;                                                                               \
        __m512 of_weights[P];                                                                                         \
        EACH(n, P) of_weights[n] = _mm512_loadu_ps(p->sums + g * p->padded + (first + n) * PANEL);                    \
        EACH(r, R) {                                                                                                  \
            const __m512 step = _mm512_set1_ps(steps[r * next]), minimum = _mm512_set1_ps(minima[r * next]);          \
            EACH(n, P) {                                                                                              \
                const __m512 before = _mm512_maskz_loadu_ps(seen, totals + r * P + n);                                \
                const __m512 least = _mm512_fmadd_ps(minimum, of_weights[n], before);                                 \
                totals[r * P + n] = _mm512_fmadd_ps(step, _mm512_cvtepi32_ps(sums[r][n]), least);                     \
            }                                                                                                         \
        }                                                                                                             \
    }

#define OF_ROWS(MACRO, P) MACRO(1, P) MACRO(2, P) MACRO(3, P) MACRO(4, P) MACRO(5, P) MACRO(6, P)
OF_ROWS(GROUP_OF, 1)
OF_ROWS(GROUP_OF, 4)

typedef void (*GroupOf)(const Product *, const Tile *, int64_t, __m512 *);
#define NAME(R, P) group_of_##R##_##P,
static const GroupOf ONE_PANEL[] = {OF_ROWS(NAME, 1)}, FOUR_PANELS[] = {OF_ROWS(NAME, 4)};

/* `finish` with twice the width: the same operations, so the same bits. */
static inline void finish16(const Product *p, int64_t row, int64_t first, __m512 total) {
    const __m512 scale = _mm512_loadu_ps(p->scale + first);
    __m512 y = p->bias ? _mm512_fmadd_ps(scale, total, _mm512_loadu_ps(p->bias + first)) : _mm512_mul_ps(scale, total);
    switch (p->activation) {
    case RELU:
        y = _mm512_max_ps(y, _mm512_setzero_ps());
        break;
    case GELU:
        y = gelu16(y);
        break;
    case GELU_TANH:
        y = gelu_tanh16(y);
        break;
    case SILU:
        y = gated16(y, y);
        break;
    }
    if (p->residual)
        y = _mm512_add_ps(y, _mm512_loadu_ps(p->residual + row * p->out + first));
    _mm512_storeu_ps(p->y + row * p->out + first, y);
}

/* What tile t of a whole chunk asks for during group g; null: nothing. A processor fetches what it sees a run of, but not
 * beyond a page, and computes and waits in turns: with this it does both at once. The only tile asks for the next group,
 * unless its rows are so few that it reads as fast as it can anyway; of several, which have theirs after the first one,
 * each asks for a part of the next chunk. */
static const int8_t *ahead_of(const Product *p, const Tile *tile, const int8_t *next, int64_t t, int64_t tiles, int64_t g) {
    const int64_t steps = p->group / 4;
    if (tiles > 1)
        return next && t * tile->share < CHUNK * LINE ? next + (t * p->width / 4 + g * steps) * tile->share : 0;
    if (p->rows < LEAST_AHEAD || p->beside != CHUNK)
        return 0;
    return g + 1 < p->groups ? tile->weights + (g + 1) * steps * tile->along : next;
}

/* Rows `row` and the following, panels `first` and the following; tile t of `tiles`. */
static void run_tile(const Product *p, int64_t first, int64_t row, int rows, int panels, const int8_t *next, int64_t t, int64_t tiles) {
    const GroupOf add_group = panels == CHUNK ? FOUR_PANELS[rows - 1] : ONE_PANEL[rows - 1];
    Tile tile = {.first = first, .row = row, .apart = p->beside == 1 ? PANEL * p->width : LINE};
    tile.weights = weights_at(p, first, 0, &tile.along);
    tile.share = CHUNK * LINE / (tiles < CHUNK ? tiles < 2 ? 1 : 2 : CHUNK);
    __m512 totals[ROWS * CHUNK];
    for (int r = 0; r < rows; r++)
        for (int n = 0; n < panels; n++) {
            const int64_t place = (row + r) * p->out + (first + n) * PANEL;
            __builtin_prefetch(p->y + place, 1);
            if (p->residual)
                __builtin_prefetch(p->residual + place);
        }
    for (int64_t g = 0; g < p->groups; g++) {
        tile.ahead = panels == CHUNK ? ahead_of(p, &tile, next, t, tiles, g) : 0;
        add_group(p, &tile, g, totals);
    }
    for (int r = 0; r < rows; r++)
        for (int n = 0; n < panels; n++) {
            const int64_t output = (first + n) * PANEL;
            const __m512 total = totals[r * panels + n];
            if (output + PANEL <= p->out) {
                finish16(p, row + r, output, total);
                continue;
            }
            finish(p, row + r, output, _mm512_castps512_ps256(total));
            if (output + 8 < p->out)
                finish(p, row + r, output + 8, _mm512_extractf32x8_ps(total, 1));
        }
}

/* All rows of panels first .. first + count, of at most CHUNK; tiles of rows as even as they can be. */
void vnni_panels(const Product *p, int64_t first, int64_t count, const int8_t *next) {
    const int64_t tiles = (p->rows + ROWS - 1) / ROWS;
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t row = t * p->rows / tiles;
        const int rows = (int)((t + 1) * p->rows / tiles - row);
        if (count == CHUNK)
            run_tile(p, first, row, rows, CHUNK, next, t, tiles);
        else
            for (int64_t panel = first; panel < first + count; panel++)
                run_tile(p, panel, row, rows, 1, 0, t, tiles);
    }
}

#pragma GCC pop_options

int vnni_here(void) {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}

#endif
