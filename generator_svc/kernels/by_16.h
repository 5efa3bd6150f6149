/* See by_8.h. */
#define NAME(function) function##_by_16
#define Vector __m512
#define Unaligned __m512_u
#define EXP exp16
#define HIGHER _mm512_max_ps
#define HIGHEST _mm512_reduce_max_ps
#define UNLIKE(v) _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q)
#define TOTAL(parts) sum8(_mm256_add_ps(_mm512_castps512_ps256((parts)[0]), _mm512_extractf32x8_ps((parts)[0], 1)))
