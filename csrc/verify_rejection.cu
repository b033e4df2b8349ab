#include "launch.cuh"
#include "verify.h"
#include "verify_rejection.cuh"

namespace wanspec {

cudaError_t verify_rejection(
    const VerifyOutputs& out, const VerifyInputs& in, const DrawInputs& draws, int32_t cluster,
    cudaStream_t stream) {
  if (in.batch == 0) return cudaSuccess;
  return for_logit_type(in.logit_type, [&](auto logit) {
    using Logit = decltype(logit);
    return launch_clusters<RejectionBuffers, Logit>(
        verify_rejection_kernel<Logit>, in.batch, in.vocab, cluster, stream, out, in, draws);
  });
}

}  // namespace wanspec
