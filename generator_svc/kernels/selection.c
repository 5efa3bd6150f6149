/* Log-softmax and the marginal over documents of a step, each in one pass over the logits; see candidates.py. */
#if defined(__x86_64__)

#include "vector.h"

#include <math.h>
#include <omp.h>

#define BLOCK 512 /* tokens that a thread takes at a time */

/* log(x) of finite x >= 1, relative error below 2e-7: exponent and a polynomial of the mantissa (Cephes' logf). */
static inline __m256 log8(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    __m256 exponent = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(bits, 23), _mm256_set1_epi32(126)));
    __m256 m = _mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi32(0x7fffff)), _mm256_set1_epi32(0x3f000000)));
    const __m256 small = _mm256_cmp_ps(m, _mm256_set1_ps(0.70710678118f), _CMP_LT_OQ);
    exponent = _mm256_sub_ps(exponent, _mm256_and_ps(small, _mm256_set1_ps(1.0f)));
    m = _mm256_sub_ps(_mm256_add_ps(m, _mm256_and_ps(small, m)), _mm256_set1_ps(1.0f));
    __m256 p = _mm256_set1_ps(7.0376836292e-2f);
    p = _mm256_fmadd_ps(p, m, _mm256_set1_ps(-1.1514610310e-1f));
    p = _mm256_fmadd_ps(p, m, _mm256_set1_ps(1.1676998740e-1f));
    p = _mm256_fmadd_ps(p, m, _mm256_set1_ps(-1.2420140846e-1f));
    p = _mm256_fmadd_ps(p, m, _mm256_set1_ps(1.4249322787e-1f));
    p = _mm256_fmadd_ps(p, m, _mm256_set1_ps(-1.6668057665e-1f));
    p = _mm256_fmadd_ps(p, m, _mm256_set1_ps(2.0000714765e-1f));
    p = _mm256_fmadd_ps(p, m, _mm256_set1_ps(-2.4999993993e-1f));
    p = _mm256_fmadd_ps(p, m, _mm256_set1_ps(3.3333331174e-1f));
    const __m256 square = _mm256_mul_ps(m, m);
    p = _mm256_mul_ps(_mm256_mul_ps(p, m), square);
    p = _mm256_fmadd_ps(exponent, _mm256_set1_ps(-2.12194440e-4f), p);
    p = _mm256_fnmadd_ps(_mm256_set1_ps(0.5f), square, p);
    return _mm256_fmadd_ps(exponent, _mm256_set1_ps(0.693359375f), _mm256_add_ps(m, p));
}

/* Eight values, or those that are left of `n` and -infinity. */
static inline __m256 take8(const float *x, int64_t i, int64_t n) {
    if (i + 8 <= n)
        return _mm256_loadu_ps(x + i);
    float last[8];
    for (int64_t k = 0; k < 8; k++)
        last[k] = i + k < n ? x[i + k] : -INFINITY;
    return _mm256_loadu_ps(last);
}

/* log of the sum of exp over n logits; NaN where one of them is. */
static float log_norm(const float *x, int64_t n) {
    __m256 high = _mm256_set1_ps(-INFINITY), unlike = _mm256_setzero_ps();
    for (int64_t i = 0; i < n; i += 8) {
        const __m256 v = take8(x, i, n);
        high = _mm256_max_ps(high, v);
        unlike = _mm256_or_ps(unlike, _mm256_cmp_ps(v, v, _CMP_UNORD_Q)); /* NaN is lost in a maximum */
    }
    if (_mm256_movemask_ps(unlike))
        return NAN;
    const float most = max8(high);
    if (isinf(most))
        return most;
    double total = 0;
    for (int64_t start = 0; start < n; start += BLOCK) {
        __m256 sum = _mm256_setzero_ps();
        for (int64_t i = start; i < n && i < start + BLOCK; i += 8)
            sum = _mm256_add_ps(sum, exp8(_mm256_sub_ps(take8(x, i, n), _mm256_set1_ps(most))));
        total += sum8(sum);
    }
    return most + (float)log(total);
}

/* logits [rows, vocab] -> norms [rows] */
void log_norms(const float *logits, int64_t rows, int64_t vocab, float *norms, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t row = 0; row < rows; row++)
        norms[row] = log_norm(logits + row * vocab, vocab);
}

/* logits [docs, hypotheses, vocab], shifts [docs, hypotheses] -> y [hypotheses, vocab]: log of the sum over documents
 * of exp(logits + shifts). -infinity where all are; logits and shifts below infinity. */
void marginals(const float *logits, const float *shifts, int64_t docs, int64_t hypotheses, int64_t vocab, float *y,
               int threads) {
    const int64_t blocks = (vocab + BLOCK - 1) / BLOCK, stride = hypotheses * vocab;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t item = 0; item < hypotheses * blocks; item++) {
        const int64_t hypothesis = item / blocks, start = item % blocks * BLOCK;
        const int64_t end = start + BLOCK < vocab ? start + BLOCK : vocab;
        const float *x = logits + hypothesis * vocab, *shift = shifts + hypothesis;
        for (int64_t i = start; i < end; i += 8) {
            __m256 high = _mm256_set1_ps(-INFINITY), sum = _mm256_setzero_ps();
            for (int64_t d = 0; d < docs; d++)
                high = _mm256_max_ps(high, _mm256_add_ps(take8(x + d * stride, i, vocab), _mm256_set1_ps(shift[d * hypotheses])));
            const __m256 peak = _mm256_max_ps(high, _mm256_set1_ps(-3e38f)); /* -inf less -inf is no number */
            for (int64_t d = 0; d < docs; d++) {
                const __m256 v = _mm256_add_ps(take8(x + d * stride, i, vocab), _mm256_set1_ps(shift[d * hypotheses]));
                sum = _mm256_add_ps(sum, exp8(_mm256_sub_ps(v, peak)));
            }
            const __m256 none = _mm256_cmp_ps(high, _mm256_set1_ps(-INFINITY), _CMP_EQ_OQ);
            const __m256 value = _mm256_add_ps(peak, log8(_mm256_max_ps(sum, _mm256_set1_ps(1.0f))));
            const __m256 result = _mm256_blendv_ps(value, _mm256_set1_ps(-INFINITY), none);
            if (i + 8 <= vocab) {
                _mm256_storeu_ps(y + hypothesis * vocab + i, result);
                continue;
            }
            float last[8];
            _mm256_storeu_ps(last, result);
            for (int64_t k = 0; i + k < vocab; k++)
                y[hypothesis * vocab + i + k] = last[k];
        }
    }
}

#endif
