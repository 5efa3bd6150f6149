/* Attention of single tokens over keys and values that stay where they are: nothing is gathered or expanded.
 *
 * Every (row, head) is computed on its own, in one order of additions: a result does not depend on the rows beside it.
 */
#if defined(__x86_64__)

#include "vector.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>

#define TILE 4 /* rows that read a key or value together */

static inline __m256 load8(const void *from, int64_t i, int half) {
    if (half)
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)from + i)));
    return _mm256_loadu_ps((const float *)from + i);
}

/* scores [n] -> exp(scores - their maximum), and 1 / the sum of these. scores has room for 8 more. */
static float softmax(float *scores, int64_t n) {
    for (int64_t t = n; t % 8; t++)
        scores[t] = -INFINITY;
    __m256 high = _mm256_set1_ps(-INFINITY), total = _mm256_setzero_ps();
    for (int64_t t = 0; t < n; t += 8)
        high = _mm256_max_ps(high, _mm256_loadu_ps(scores + t));
    const __m256 most = _mm256_set1_ps(max8(high));
    for (int64_t t = 0; t < n; t += 8) {
        const __m256 e = exp8(_mm256_sub_ps(_mm256_loadu_ps(scores + t), most));
        _mm256_storeu_ps(scores + t, e);
        total = _mm256_add_ps(total, e);
    }
    return 1.0f / sum8(total);
}

/* Rows `first` .. `first + count` of one head over a document: keys and values [n_tokens, dim]. */
static inline __attribute__((always_inline)) void cross_rows(const float *query, float *y, int64_t stride, const void *keys,
                                                             const void *values, int64_t n, int64_t dim, float scale,
                                                             float *scores, int64_t room, const int rows, const int half) {
    for (int64_t t = 0; t < n; t++) {
        __m256 sums[TILE];
        for (int r = 0; r < rows; r++)
            sums[r] = _mm256_setzero_ps();
        for (int64_t d = 0; d < dim; d += 8) {
            const __m256 key = load8(keys, t * dim + d, half);
            for (int r = 0; r < rows; r++)
                sums[r] = _mm256_fmadd_ps(key, _mm256_loadu_ps(query + r * stride + d), sums[r]);
        }
        for (int r = 0; r < rows; r++)
            scores[r * room + t] = scale * sum8(sums[r]);
    }
    float shares[TILE];
    for (int r = 0; r < rows; r++)
        shares[r] = softmax(scores + r * room, n);
    for (int64_t d = 0; d < dim; d += 8) {
        __m256 sums[TILE];
        for (int r = 0; r < rows; r++)
            sums[r] = _mm256_setzero_ps();
        for (int64_t t = 0; t < n; t++) {
            const __m256 value = load8(values, t * dim + d, half);
            for (int r = 0; r < rows; r++)
                sums[r] = _mm256_fmadd_ps(value, _mm256_set1_ps(scores[r * room + t]), sums[r]);
        }
        for (int r = 0; r < rows; r++)
            _mm256_storeu_ps(y + r * stride + d, _mm256_mul_ps(sums[r], _mm256_set1_ps(shares[r])));
    }
}

#define CROSS(rows, half) \
    cross_rows(q, to, inner, keys, values, n, dim, scale, scores, room, rows, half)

/* query and y [n_rows, heads * dim]; documents[g] points at [2, heads, tokens[g], dim], whose rows are
 * starts[g] .. starts[g + 1]. half: keys and values are float16. dim is a multiple of 8. 0, or -1 without memory. */
int cross_attention(const float *query, float *y, const void *const *documents, const int64_t *tokens,
                    const int64_t *starts, int64_t groups, int64_t heads, int64_t dim, float scale, int half, int threads) {
    const int64_t inner = heads * dim, size = half ? 2 : 4;
    int64_t longest = 0;
    for (int64_t g = 0; g < groups; g++)
        longest = tokens[g] > longest ? tokens[g] : longest;
    const int64_t room = longest + 8;
    float *all = malloc((size_t)(threads * TILE * room) * sizeof(float));
    if (!all)
        return -1;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t item = 0; item < groups * heads; item++) {
        const int64_t group = item / heads, head = item % heads, n = tokens[group];
        const char *keys = (const char *)documents[group] + head * n * dim * size;
        const char *values = keys + heads * n * dim * size;
        float *scores = all + omp_get_thread_num() * TILE * room;
        for (int64_t row = starts[group]; row < starts[group + 1]; row += TILE) {
            const float *q = query + row * inner + head * dim;
            float *to = y + row * inner + head * dim;
            const int64_t left = starts[group + 1] - row;
            if (left >= 4) {
                if (half) CROSS(4, 1); else CROSS(4, 0);
            } else if (left == 3) {
                if (half) CROSS(3, 1); else CROSS(3, 0);
            } else if (left == 2) {
                if (half) CROSS(2, 1); else CROSS(2, 0);
            } else {
                if (half) CROSS(1, 1); else CROSS(1, 0);
            }
        }
    }
    free(all);
    return 0;
}

/* qkv [n_rows, 3 * inner]: keys and values are first written to the row's own slot, the last of its path; then each
 * row attends to its path. cache [n_slots, 2 * inner]; table [n_rows, longest] of slots, lengths [n_rows];
 * bias null or [n_rows, heads, longest]. y [n_rows, inner]. 0, or -1 without memory. */
int path_attention(const float *qkv, float *y, float *cache, const int64_t *table, const int64_t *lengths, const float *bias,
                   int64_t rows, int64_t longest, int64_t heads, int64_t dim, float scale, int threads) {
    const int64_t inner = heads * dim, room = longest + 8;
    float *all = malloc((size_t)(threads * room) * sizeof(float));
    if (!all)
        return -1;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            float *own = cache + table[row * longest + lengths[row] - 1] * 2 * inner;
            const float *from = qkv + row * 3 * inner + inner;
            for (int64_t i = 0; i < 2 * inner; i += 8)
                _mm256_storeu_ps(own + i, _mm256_loadu_ps(from + i));
        }
#pragma omp for schedule(static)
        for (int64_t item = 0; item < rows * heads; item++) {
            const int64_t row = item / heads, head = item % heads, n = lengths[row];
            const int64_t *path = table + row * longest;
            const float *query = qkv + row * 3 * inner + head * dim;
            float *scores = all + omp_get_thread_num() * room;
            for (int64_t t = 0; t < n; t++) {
                const float *key = cache + path[t] * 2 * inner + head * dim;
                __m256 sum = _mm256_setzero_ps();
                for (int64_t d = 0; d < dim; d += 8)
                    sum = _mm256_fmadd_ps(_mm256_loadu_ps(key + d), _mm256_loadu_ps(query + d), sum);
                scores[t] = scale * sum8(sum) + (bias ? bias[item * longest + t] : 0);
            }
            const __m256 share = _mm256_set1_ps(softmax(scores, n));
            for (int64_t d = 0; d < dim; d += 8) {
                __m256 sum = _mm256_setzero_ps();
                for (int64_t t = 0; t < n; t++) {
                    const float *value = cache + path[t] * 2 * inner + inner + head * dim;
                    sum = _mm256_fmadd_ps(_mm256_loadu_ps(value + d), _mm256_set1_ps(scores[t]), sum);
                }
                _mm256_storeu_ps(y + row * inner + head * dim + d, _mm256_mul_ps(sum, share));
            }
        }
    }
    free(all);
    return 0;
}

#endif
