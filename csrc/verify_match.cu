#include "launch.cuh"
#include "verify.h"
#include "verify_match.cuh"

namespace wanspec {

cudaError_t verify_match(
    const VerifyOutputs& out, const VerifyInputs& in, const int32_t* parents, int32_t cluster,
    cudaStream_t stream) {
  if (in.batch == 0) return cudaSuccess;
  return for_logit_type(in.logit_type, [&](auto logit) {
    using Logit = decltype(logit);
    return launch_clusters<MatchBuffers, Logit>(
        verify_match_kernel<Logit>, in.batch, in.vocab, cluster, stream, out, in, parents);
  });
}

}  // namespace wanspec
