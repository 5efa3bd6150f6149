/* What a header that is included once for each set of instructions calls its vectors of 8 floats; by_16.h says the same of
 * 16, and by_none.h forgets it. */
#define NAME(function) function##_by_8
#define Vector __m256
#define Unaligned __m256_u
#define EXP exp8
#define HIGHER _mm256_max_ps
#define HIGHEST max8
#define UNLIKE(v) _mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q))
#define TOTAL(parts) sum8(_mm256_add_ps((parts)[0], (parts)[1]))
