output "url" {
  description = "Where roots go: reben-cloud build SOURCE <url>/NAME"
  value       = "s3://${aws_s3_bucket.roots.bucket}"
}

output "builder_role_arn" {
  description = "Role that may write, but not delete."
  value       = one(aws_iam_role.builder[*].arn)
}

output "trainer_role_arn" {
  description = "Role that may read."
  value       = one(aws_iam_role.trainer[*].arn)
}
