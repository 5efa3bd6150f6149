/* y = activation(x @ w.T + bias) + residual, with weights of 7 bits and activations of 7 bits in groups.
 *
 * A group of 128 values of a row x is minimum + step * q with q in 0..127; a row w is scale * q with q in -63..63. So
 * four products fit into 16 bits (4 * 127 * 63 < 32768) and nothing saturates on processors without VNNI. Sums within
 * a group are exact integers, and groups are added in order: a row's result does not depend on the rows beside it.
 *
 * In a fine product groups have 64 values, and w has q in -127..127: two products fit into 16 bits (2 * 127 * 127).
 */
#if defined(__x86_64__)

#include "kernels.h"
#include "product.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#define LEVELS 127
#define FIRST 4096 /* bytes of weights asked for while the inputs are quantized */

static int with_vnni;

/* Whether products use AVX-512 VNNI: where the processor has it, unless `wanted` is 0. */
int choose_vnni(int wanted) { return with_vnni = wanted && vnni_here(); }

int vnni_chosen(void) { return with_vnni; }

/* Panels of 16 outputs, laid out as `weights_at` says. */
int64_t packed_bytes(int64_t out, int64_t in) {
    return (out + PANEL - 1) / PANEL * PANEL * ((in + BLOCK - 1) / BLOCK * BLOCK);
}

static int64_t group_size(int64_t fine) { return fine ? FINE_GROUP : GROUP; }

int64_t group_count(int64_t in, int64_t fine) { return (in + group_size(fine) - 1) / group_size(fine); }

/* weight [out, in] -> packed, and sums [groups, padded outputs] of each row's groups. How many panels stand
 * beside each other: what is best for the instructions that are chosen now, the others read it too. */
int64_t pack_int8(const int8_t *weight, int64_t out, int64_t in, int64_t fine, int8_t *packed, float *sums) {
    const int64_t panels = (out + PANEL - 1) / PANEL, size = group_size(fine);
    const Product p = {.weight = packed, .width = (in + BLOCK - 1) / BLOCK * BLOCK, .padded = panels * PANEL, .beside = with_vnni ? CHUNK : 1};
    memset(packed, 0, (size_t)packed_bytes(out, in));
#pragma omp parallel for
    for (int64_t o = 0; o < panels * PANEL; o++) {
        int64_t along;
        int8_t *own = packed + (weights_at(&p, o / PANEL, 0, &along) - packed) + o % PANEL * 4;
        for (int64_t g = 0; g < group_count(in, fine); g++) {
            int32_t sum = 0;
            for (int64_t i = g * size; o < out && i < in && i < (g + 1) * size; i++) {
                own[i / 4 * along + i % 4] = weight[o * in + i];
                sum += weight[o * in + i];
            }
            sums[g * panels * PANEL + o] = (float)sum;
        }
    }
    return p.beside;
}

/* One group of `in` values. */
static void quantize(const float *x, int64_t in, uint8_t *q, float *step, float *minimum) {
    __m256 low = _mm256_set1_ps(x[0]), high = low, unlike = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= in; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i);
        low = _mm256_min_ps(low, v);
        high = _mm256_max_ps(high, v);
        unlike = _mm256_or_ps(unlike, _mm256_cmp_ps(v, v, _CMP_UNORD_Q)); /* NaN is lost in a minimum */
    }
    int is_nan = _mm256_movemask_ps(unlike);
    float least = min8(low), most = max8(high);
    for (; i < in; i++) {
        least = x[i] < least ? x[i] : least;
        most = x[i] > most ? x[i] : most;
        is_nan |= x[i] != x[i];
    }
    const float size = (most - least) / LEVELS, factor = size > 0 ? 1 / size : 0;
    *step = is_nan ? NAN : size;
    *minimum = least;
    for (i = 0; i + 8 <= in; i += 8) {
        const __m256 v = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(least)), _mm256_set1_ps(factor));
        const __m256i n = _mm256_cvtps_epi32(v);
        const __m128i n16 = _mm_packus_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1));
        _mm_storel_epi64((__m128i *)(q + i), _mm_min_epu8(_mm_packus_epi16(n16, n16), _mm_set1_epi8(LEVELS)));
    }
    for (; i < in; i++) {
        const int n = _mm_cvtss_si32(_mm_set_ss((x[i] - least) * factor));
        q[i] = (uint8_t)(n < 0 ? 0 : n > LEVELS ? LEVELS : n);
    }
}

/* sums += a * v + b * w, of which four products each fit into 16 bits */
static inline __m256i add_four(__m256i sums, __m256i a, __m256i v, __m256i b, __m256i w) {
    const __m256i products = _mm256_add_epi16(_mm256_maddubs_epi16(a, v), _mm256_maddubs_epi16(b, w));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
}

/* the same, of which two do */
static inline __m256i add_two(__m256i sums, __m256i a, __m256i v, __m256i b, __m256i w) {
    const __m256i ones = _mm256_set1_epi16(1);
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(a, v), ones));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(b, w), ones));
}

/* Integer sums of some rows over `blocks` blocks of one panel. Kept apart, so that all of them stay in registers. */
#define ROW_SUMS(ROWS, ADD)                                                                                           \
    static __attribute__((noinline)) void ADD##_##ROWS(const uint8_t *x, int64_t width, const int8_t *w,              \
                                                         int64_t along, int64_t blocks, __m256i *to) {                \
        __m256i sums[ROWS][2];                                                                                        \
        for (int r = 0; r < ROWS; r++)                                                                                \
            sums[r][0] = sums[r][1] = _mm256_setzero_si256();                                                         \
        for (int64_t k = 0; k < blocks; k++, w += 2 * along) {                                                        \
            const __m256i *v = (const __m256i *)w, *next = (const __m256i *)(w + along);                              \
            const __m256i w00 = _mm256_loadu_si256(v), w01 = _mm256_loadu_si256(v + 1);                               \
            const __m256i w10 = _mm256_loadu_si256(next), w11 = _mm256_loadu_si256(next + 1);                         \
            for (int r = 0; r < ROWS; r++) {                                                                          \
                int32_t four[2];                                                                                      \
                memcpy(four, x + r * width + k * BLOCK, sizeof four);                                                 \
                const __m256i a = _mm256_set1_epi32(four[0]), b = _mm256_set1_epi32(four[1]);                         \
                sums[r][0] = ADD(sums[r][0], a, w00, b, w10);                                                         \
                sums[r][1] = ADD(sums[r][1], a, w01, b, w11);                                                         \
            }                                                                                                         \
        }                                                                                                             \
        for (int r = 0; r < ROWS; r++) {                                                                              \
            _mm256_storeu_si256(to + 2 * r, sums[r][0]);                                                              \
            _mm256_storeu_si256(to + 2 * r + 1, sums[r][1]);                                                          \
        }                                                                                                             \
    }

#define ROWS_BY(ADD) ROW_SUMS(1, ADD) ROW_SUMS(2, ADD) ROW_SUMS(3, ADD) ROW_SUMS(4, ADD)
ROWS_BY(add_four)
ROWS_BY(add_two)

typedef void (*RowSums)(const uint8_t *, int64_t, const int8_t *, int64_t, int64_t, __m256i *);
static const RowSums SUMS[2][5] = {{0, add_four_1, add_four_2, add_four_3, add_four_4}, {0, add_two_1, add_two_2, add_two_3, add_two_4}};

/* One panel of outputs for up to four rows. */
static void tile(const Product *p, int64_t panel, int64_t row, const int rows) {
    int64_t along;
    const int8_t *w = weights_at(p, panel, 0, &along);
    __m256 totals[4][2];
    for (int r = 0; r < rows; r++)
        totals[r][0] = totals[r][1] = _mm256_setzero_ps();
    for (int64_t g = 0, k = 0; g < p->groups; g++, k += p->group) {
        __m256i sums[4][2];
        const int64_t size = p->width - k < p->group ? p->width - k : p->group;
        SUMS[p->fine][rows](p->q + row * p->width + k, p->width, w + k / 4 * along, along, size / BLOCK, &sums[0][0]);
        const float *of_weights = p->sums + g * p->padded + panel * PANEL;
        for (int r = 0; r < rows; r++) {
            const __m256 step = _mm256_set1_ps(p->step[(row + r) * p->groups + g]);
            const __m256 minimum = _mm256_set1_ps(p->minimum[(row + r) * p->groups + g]);
            for (int v = 0; v < 2; v++) {
                const __m256 least = _mm256_fmadd_ps(minimum, _mm256_loadu_ps(of_weights + 8 * v), totals[r][v]);
                totals[r][v] = _mm256_fmadd_ps(step, _mm256_cvtepi32_ps(sums[r][v]), least);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        finish(p, row + r, panel * PANEL, totals[r][0]);
        if (panel * PANEL + 8 < p->out)
            finish(p, row + r, panel * PANEL + 8, totals[r][1]);
    }
}

/* All rows of one panel, four at a time; the last five as three and two, for one alone takes nearly as long as two. */
static void panel_rows(const Product *p, int64_t panel) {
    for (int64_t row = 0, left = p->rows; left > 0;) {
        const int rows = left >= 6 || left == 4 ? 4 : left == 5 ? 3 : (int)left;
        tile(p, panel, row, rows);
        row += rows;
        left -= rows;
    }
}

/* Bytes of the room that a product of these rows needs: a counter, the rows' integers, then step and minimum of each group. */
size_t linear_room(int64_t rows, int64_t in, int64_t fine) {
    const int64_t width = (in + BLOCK - 1) / BLOCK * BLOCK;
    return LINE + (size_t)(rows * width + 63) / 64 * 64 + (size_t)(rows * group_count(in, fine)) * 2 * sizeof(float);
}

/* Panels in chunks, to whichever thread is free: each takes its next chunk before it computes one, and so knows it. The
 * first ones, one for each thread, count as taken. */
static void share_panels(const Product *p, int64_t chunk, int64_t *taken) {
    const int64_t panels = p->padded / PANEL, chunks = (panels + chunk - 1) / chunk;
    for (int64_t mine = omp_get_thread_num(), next; mine < chunks; mine = next) {
        next = __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED);
        const int64_t first = mine * chunk, count = panels - first < chunk ? panels - first : chunk;
        const int whole = p->beside == CHUNK && chunk == CHUNK && (next + 1) * CHUNK <= panels;
        if (with_vnni)
            vnni_panels(p, first, count, whole ? p->weight + next * CHUNK * PANEL * p->width : 0);
        else
            for (int64_t panel = first; panel < first + count; panel++)
                panel_rows(p, panel);
    }
#pragma omp barrier
}

void linear_team(const Linear *l, const float *x, int64_t rows, const float *residual, float *y, void *room, int threads) {
    const int64_t in = l->in, width = (in + BLOCK - 1) / BLOCK * BLOCK, panels = (l->out + PANEL - 1) / PANEL;
    const int64_t group = group_size(l->fine), groups = group_count(in, l->fine), chunk = panels >= 2 * CHUNK * threads ? CHUNK : 1;
    int64_t *taken = room;
    uint8_t *q = (uint8_t *)room + LINE;
    float *step = (float *)(q + (rows * width + 63) / 64 * 64), *minimum = step + rows * groups;
    const Product p = {q,     step,  minimum, l->weight, l->scale,       l->bias,   l->sums,        residual, y,
                       rows,  width, group,   groups,    l->out,         panels * PANEL, l->beside, (int)l->fine, (int)l->activation};
    const int8_t *mine = l->weight + omp_get_thread_num() * chunk * PANEL * width;
    for (int64_t i = 0; i < FIRST && omp_get_thread_num() * chunk < panels; i += LINE)
        _mm_prefetch(mine + i, _MM_HINT_T1);
#pragma omp single nowait
    *taken = omp_get_num_threads();
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t g = 0; g < groups; g++) {
            const int64_t first = g * group, size = in - first < group ? in - first : group;
            quantize(x + row * in + first, size, q + row * width + first, step + row * groups + g, minimum + row * groups + g);
        }
        memset(q + row * width + in, 0, (size_t)(width - in));
    }
    share_panels(&p, chunk, taken);
}

/* x [rows, in] contiguous; residual null or [rows, out]; bias null or padded to panels. 0, or -1 without memory. */
int linear_int8(const float *x, int64_t rows, int64_t in, int64_t out, int64_t beside, int64_t fine, const int8_t *weight,
                const float *scale, const float *sums, const float *bias, const float *residual, float *y, int activation, int threads) {
    const Linear l = {in, out, beside, fine, activation, weight, scale, sums, bias};
    void *room = aligned_alloc(64, (linear_room(rows, in, fine) + 63) / 64 * 64);
    if (!room)
        return -1;
#pragma omp parallel num_threads(threads)
    linear_team(&l, x, rows, residual, y, room, threads);
    free(room);
    return 0;
}

#endif
